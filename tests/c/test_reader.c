/*
 * The reader as its caller sees it: the right bytes, in the right place, and none beside it.
 * The kernel's answers to pread() are made worse on demand.
 */
#include "s3dlio/reader.h"

#include <pthread.h>
#include <stdatomic.h>

#include "s3dlio/status.h"
#include "support.h"

#define BLOCK  (64 * KIB)
#define GUARD  64
#define FILLER 0xa5

static char folder[PATH_MAX];
static char path[PATH_MAX];
static bool folder_takes_direct;

static const char *const engines[] = {NULL, "uring", "threads"};

/* Faults: this definition takes the place of the C library's in this program. */

enum fault { NO_FAULT, REFUSE_DIRECT, CUT_SHORT, INTERRUPT, ALWAYS_AGAIN, ALWAYS_EIO, SLOW };

static atomic_int fault = NO_FAULT;
static atomic_uint npread;

ssize_t
pread(int fd, void *data, size_t nbytes, off_t offset)
{
    unsigned n = atomic_fetch_add(&npread, 1);

    if (fault == REFUSE_DIRECT && (fcntl(fd, F_GETFL) & O_DIRECT)) {
        errno = EINVAL;
        return -1;
    }
    if ((fault == INTERRUPT && n % 3 != 0) || fault == ALWAYS_AGAIN || fault == ALWAYS_EIO) {
        errno = fault == ALWAYS_EIO ? EIO : fault == ALWAYS_AGAIN || n % 3 == 2 ? EAGAIN : EINTR;
        return -1;
    }
    if (fault == CUT_SHORT) {
        if (fcntl(fd, F_GETFL) & O_DIRECT)
            nbytes = nbytes > 8192 ? nbytes / 2 / 4096 * 4096 : nbytes;
        else
            nbytes = nbytes > 100 ? nbytes / 3 : nbytes;
    }
    if (fault == SLOW)
        sleep_ms(20);
    return syscall(SYS_pread64, fd, data, nbytes, offset);
}

static struct s3dlio_reader_options
small_blocks(void)
{
    return (struct s3dlio_reader_options){.struct_nbytes = sizeof(struct s3dlio_reader_options),
                                          .block_nbytes = BLOCK,
                                          .in_flight = 3};
}

static struct s3dlio_reader *
open_reader(const struct s3dlio_reader_options *options)
{
    struct s3dlio_reader *reader = NULL;

    CHECK_EQ(s3dlio_reader_open(&reader, path, options), 0);
    return reader;
}

static bool
can_force(const char *engine)
{
    return !engine || strcmp(engine, "uring") != 0 || has_uring();
}

static bool
is_filler(const unsigned char *data, size_t nbytes)
{
    return nbytes == 0 || (data[0] == FILLER && memcmp(data, data + 1, nbytes - 1) == 0);
}

/* Memory for 'nbytes' at any distance below 4096 from a page, with guards around it. */
struct room {
    unsigned char *memory;
    unsigned char *data;
    size_t nbytes;
};

static struct room
make_room(size_t nbytes, size_t misalign)
{
    struct room room = {.nbytes = nbytes};
    void *memory;

    CHECK(posix_memalign(&memory, 4096, 4096 + misalign + nbytes + GUARD) == 0);
    room.memory = memory;
    room.data = room.memory + 4096 + misalign;
    memset(room.data - GUARD, FILLER, nbytes + 2 * GUARD);
    return room;
}

static void
check_room(const struct room *room, const unsigned char *data, size_t nbytes)
{
    CHECK(is_filler(room->data - GUARD, GUARD));
    CHECK(memcmp(room->data, data, nbytes) == 0);
    CHECK(is_filler(room->data + nbytes, room->nbytes - nbytes + GUARD));
}

static void
check_read(struct s3dlio_reader *reader, const unsigned char *file, size_t file_nbytes,
           size_t offset, size_t nbytes, size_t misalign)
{
    struct room room = make_room(nbytes, misalign);
    size_t rest = offset < file_nbytes ? file_nbytes - offset : 0;
    size_t expected = nbytes < rest ? nbytes : rest;
    uint32_t crc32c = 12345;
    bool want = (offset + nbytes) % 2 == 0;

    CHECK_EQ(s3dlio_reader_read(reader, room.data, nbytes, offset, want ? &crc32c : NULL),
             expected);
    check_room(&room, file + (offset < file_nbytes ? offset : 0), expected);
    if (want)
        CHECK_EQ(crc32c, slow_crc32c(0, room.data, expected));
    free(room.memory);
}

/* Offsets and ends around the borders of blocks, of pages and of the file. */
static void
check_borders(const struct s3dlio_reader_options *options, const unsigned char *file,
              size_t file_nbytes)
{
    static const size_t borders[] = {0, 4096, BLOCK, 3 * BLOCK};
    static const int around[] = {-1, 0, 1};
    static const size_t misaligns[] = {0, 1, 512, 4095};
    struct s3dlio_reader *reader;
    size_t points[64];
    unsigned npoints = 0, n = 0;

    for (unsigned i = 0; i < 12; i++) {
        if (borders[i / 3] || around[i % 3] >= 0)
            points[npoints++] = borders[i / 3] + around[i % 3];
    }
    for (unsigned i = 0; i < 3; i++) {
        if (file_nbytes || around[i] >= 0)
            points[npoints++] = file_nbytes + around[i];
    }
    put_file(path, file, file_nbytes);
    reader = open_reader(options);
    CHECK_EQ(s3dlio_reader_nbytes(reader), file_nbytes);
    CHECK_EQ(s3dlio_reader_is_direct(reader),
             options->direct == S3DLIO_DIRECT_PREFER && folder_takes_direct);
    for (unsigned i = 0; i < npoints; i++) {
        for (unsigned j = 0; j < npoints; j++) {
            if (points[j] >= points[i])
                check_read(reader, file, file_nbytes, points[i], points[j] - points[i],
                           misaligns[n++ % 4]);
        }
    }
    check_read(reader, file, file_nbytes, 0, file_nbytes + 3 * BLOCK, 0);
    check_read(reader, file, file_nbytes, 100, file_nbytes + 3 * BLOCK, 100);
    check_read(reader, file, file_nbytes, file_nbytes + 3 * BLOCK, 5, 0);
    s3dlio_reader_free(reader);
}

static void
every_range_gives_the_right_bytes_in_every_mode(void)
{
    static const size_t sizes[] = {0, 1, 4096, BLOCK, 3 * BLOCK + 4096, 5 * BLOCK + 777};
    unsigned char *file = make_data(6 * BLOCK, 1);

    for (unsigned mode = 0; mode < 3 * 2; mode++) {
        struct s3dlio_reader_options options = small_blocks();

        if (!can_force(engines[mode % 3]))
            continue;
        force_engine(engines[mode % 3]);
        options.direct = mode / 3 ? S3DLIO_DIRECT_PREFER : S3DLIO_DIRECT_OFF;
        for (unsigned i = 0; i < sizeof sizes / sizeof sizes[0]; i++)
            check_borders(&options, file, sizes[i]);
    }
    force_engine(NULL);
    free(file);
}

static void
random_ranges_give_the_right_bytes(void)
{
    const size_t nbytes = 40 * BLOCK + 1234;
    unsigned char *file = make_data(nbytes, 2);
    uint64_t state = 99;

    put_file(path, file, nbytes);
    for (unsigned mode = 0; mode < 3 * 2; mode++) {
        struct s3dlio_reader_options options = small_blocks();
        struct s3dlio_reader *reader;

        if (!can_force(engines[mode % 3]))
            continue;
        force_engine(engines[mode % 3]);
        options.direct = mode / 3 ? S3DLIO_DIRECT_PREFER : S3DLIO_DIRECT_OFF;
        options.in_flight = 1 + mode;
        options.block_nbytes = BLOCK + 4096 * mode + (mode / 3 ? 0 : 333);
        reader = open_reader(&options);
        for (int i = 0; i < 60; i++) {
            size_t offset = random_between(&state, 0, nbytes);
            size_t misalign = random_between(&state, 0, 4095);

            /* Half of them with the same remainder, which goes straight to its place. */
            check_read(reader, file, nbytes, offset, random_between(&state, 0, nbytes),
                       i % 2 ? misalign : offset % 4096);
        }
        s3dlio_reader_free(reader);
    }
    force_engine(NULL);
    free(file);
}

static void
engine_is_named_when_it_is_needed(void)
{
    struct s3dlio_reader_options options = small_blocks();
    unsigned char *file = make_data(3 * BLOCK, 3);
    unsigned char *data = malloc(3 * BLOCK);
    struct s3dlio_reader *reader;

    CHECK(data);
    put_file(path, file, 3 * BLOCK);
    reader = open_reader(&options);
    CHECK_EQ(s3dlio_reader_read(reader, data, BLOCK, 0, NULL), BLOCK);
    CHECK_EQ(s3dlio_reader_read(reader, data, 0, 5, NULL), 0);
    CHECK_EQ(s3dlio_reader_read(reader, data, 10, 3 * BLOCK, NULL), 0);
    CHECK(strcmp(s3dlio_reader_engine(reader), "pread") == 0);
    CHECK_EQ(s3dlio_reader_read(reader, data, BLOCK, 1, NULL), BLOCK);
    CHECK(strcmp(s3dlio_reader_engine(reader), has_uring() ? "io_uring" : "threads") == 0);
    s3dlio_reader_free(reader);
    free(data);
    free(file);
}

static void
short_and_broken_off_reads_are_finished(void)
{
    const size_t nbytes = 5 * BLOCK + 99;
    unsigned char *file = make_data(nbytes, 4);

    put_file(path, file, nbytes);
    force_engine("threads");
    for (unsigned mode = 0; mode < 2 * 2; mode++) {
        struct s3dlio_reader_options options = small_blocks();
        struct s3dlio_reader *reader;

        options.direct = mode / 2 ? S3DLIO_DIRECT_PREFER : S3DLIO_DIRECT_OFF;
        fault = mode % 2 ? CUT_SHORT : INTERRUPT;
        reader = open_reader(&options);
        check_read(reader, file, nbytes, 0, nbytes, 0);
        check_read(reader, file, nbytes, 77, nbytes, 77);
        check_read(reader, file, nbytes, 77, 2 * BLOCK, 1);
        s3dlio_reader_free(reader);
    }
    fault = NO_FAULT;
    force_engine(NULL);
    free(file);
}

static void
direct_refused_at_the_first_read_is_left(void)
{
    const size_t nbytes = 5 * BLOCK + 99;
    unsigned char *file = make_data(nbytes, 5);
    unsigned char *data = malloc(nbytes);

    CHECK(data);
    put_file(path, file, nbytes);
    for (unsigned mode = 0; folder_takes_direct && mode < 2 * 2; mode++) {
        struct s3dlio_reader_options options = small_blocks();
        struct s3dlio_reader *reader;
        size_t count = mode % 2 ? nbytes : 1000;

        force_engine(mode % 2 ? "threads" : NULL);
        fault = REFUSE_DIRECT;
        options.direct = mode / 2 ? S3DLIO_DIRECT_REQUIRE : S3DLIO_DIRECT_PREFER;
        reader = open_reader(&options);
        CHECK_EQ(s3dlio_reader_is_direct(reader), 1);
        if (mode / 2) {
            CHECK_EQ(s3dlio_reader_read(reader, data, count, 0, NULL), S3DLIO_E_NO_DIRECT);
        } else {
            check_read(reader, file, nbytes, 3, count, 5);
            CHECK_EQ(s3dlio_reader_is_direct(reader), 0);
        }
        fault = NO_FAULT;
        check_read(reader, file, nbytes, 4097, nbytes, 5);
        s3dlio_reader_free(reader);
    }
    force_engine(NULL);
    free(data);
    free(file);
}

/* Once -EAGAIN from the kernel was taken for the end of a slice, and the read hung when it was
 * called again. */
static void
failing_reads_report_the_failure_and_the_next_read_works(void)
{
    const size_t nbytes = 5 * BLOCK;
    unsigned char *file = make_data(nbytes, 6);
    unsigned char *data = malloc(nbytes);

    CHECK(data);
    put_file(path, file, nbytes);
    for (unsigned mode = 0; mode < 2 * 2; mode++) {
        struct s3dlio_reader_options options = small_blocks();
        struct s3dlio_reader *reader;
        size_t count = mode % 2 ? nbytes : 1000;
        int64_t result;

        force_engine(mode % 2 ? "threads" : NULL);
        reader = open_reader(&options);
        fault = mode / 2 ? ALWAYS_AGAIN : ALWAYS_EIO;
        result = s3dlio_reader_read(reader, data, count, 0, NULL);
        CHECK(result < 0 && result != -EAGAIN);
        if (fault == ALWAYS_EIO)
            CHECK_EQ(result, -EIO);
        fault = NO_FAULT;
        check_read(reader, file, nbytes, 1, nbytes, 0);
        s3dlio_reader_free(reader);
    }
    force_engine(NULL);
    free(data);
    free(file);
}

static void
slices_resume_with_the_same_arguments_only(void)
{
    const size_t nbytes = 40 * BLOCK + 7;
    unsigned char *file = make_data(nbytes, 7);

    put_file(path, file, nbytes);
    for (unsigned mode = 0; mode < 2 * 2; mode++) {
        struct s3dlio_reader_options options = small_blocks();
        struct room room = make_room(nbytes, mode);
        struct s3dlio_reader *reader;
        uint32_t crc32c = 0;
        unsigned nagain = 0;
        int64_t result;

        force_engine(mode % 2 || !has_uring() ? "threads" : "uring");
        fault = mode % 2 ? SLOW : NO_FAULT;
        options.slice_ms = 1;
        options.in_flight = 1;
        options.direct = mode / 2 ? S3DLIO_DIRECT_PREFER : S3DLIO_DIRECT_OFF;
        reader = open_reader(&options);
        while ((result = s3dlio_reader_read(reader, room.data, nbytes, 0, &crc32c)) == -EAGAIN) {
            nagain++;
            CHECK_EQ(s3dlio_reader_read(reader, room.data, nbytes, 1, &crc32c), -EINVAL);
            CHECK_EQ(s3dlio_reader_read(reader, room.data, nbytes - 1, 0, &crc32c), -EINVAL);
            CHECK_EQ(s3dlio_reader_read(reader, room.data + 1, nbytes, 0, &crc32c), -EINVAL);
            CHECK_EQ(s3dlio_reader_read(reader, room.data, nbytes, 0, NULL), -EINVAL);
        }
        CHECK_EQ(result, nbytes);
        check_room(&room, file, nbytes);
        CHECK_EQ(crc32c, slow_crc32c(0, file, nbytes));
        if (fault == SLOW)
            CHECK(nagain > 0);
        s3dlio_reader_free(reader);
        free(room.memory);
    }
    fault = NO_FAULT;
    force_engine(NULL);
    free(file);
}

static void
nothing_is_written_after_cancel_or_free(void)
{
    const size_t nbytes = 40 * BLOCK;
    unsigned char *file = make_data(nbytes, 8);

    put_file(path, file, nbytes);
    for (unsigned mode = 0; mode < 2 * 2 * 2; mode++) {
        struct s3dlio_reader_options options = small_blocks();
        struct room room = make_room(nbytes, mode / 2 % 2);
        struct s3dlio_reader *reader;
        int64_t result;

        force_engine(mode % 2 || !has_uring() ? "threads" : "uring");
        fault = mode % 2 ? SLOW : NO_FAULT;
        options.slice_ms = 1;
        options.in_flight = 8;
        options.direct = S3DLIO_DIRECT_PREFER;
        reader = open_reader(&options);
        result = s3dlio_reader_read(reader, room.data, nbytes, 0, NULL);
        if (fault == SLOW)
            CHECK_EQ(result, -EAGAIN);
        else
            CHECK(result == -EAGAIN || result == (int64_t)nbytes);
        if (mode / 4) {
            CHECK_EQ(s3dlio_reader_cancel(reader), 0);
            CHECK_EQ(s3dlio_reader_cancel(reader), 0);
        } else {
            s3dlio_reader_free(reader);
        }
        memset(room.data, FILLER, nbytes);
        sleep_ms(60);
        CHECK(is_filler(room.data, nbytes));
        fault = NO_FAULT;
        if (mode / 4) { /* and the reader is as good as new */
            while ((result = s3dlio_reader_read(reader, room.data, nbytes, 5, NULL)) == -EAGAIN)
                ;
            CHECK_EQ(result, nbytes - 5);
            check_room(&room, file + 5, nbytes - 5);
            s3dlio_reader_free(reader);
        }
        free(room.memory);
    }
    force_engine(NULL);
    free(file);
}

static void
replaced_file_is_read_as_it_was(void)
{
    const size_t nbytes = 3 * BLOCK;
    unsigned char *file = make_data(nbytes, 9);
    struct s3dlio_reader_options options = small_blocks();
    struct s3dlio_reader *reader;
    char other[PATH_MAX];

    put_file(path, file, nbytes);
    reader = open_reader(&options);
    put_file(join(other, folder, "other"), "new", 3);
    CHECK(rename(other, path) == 0);
    check_read(reader, file, nbytes, 0, nbytes, 0);
    CHECK(unlink(path) == 0);
    check_read(reader, file, nbytes, 5, 100, 0);
    s3dlio_reader_free(reader);
    free(file);
}

/* To a page, into the middle of one, and to nothing; within one block and over several. */
static void
truncated_file_is_an_error_and_never_short(void)
{
    static const size_t lengths[] = {0, 100, 4096, 4196, BLOCK, 2 * BLOCK + 4096, 2 * BLOCK + 777};
    const size_t nbytes = 3 * BLOCK;
    unsigned char *file = make_data(nbytes, 10);
    unsigned char *data = malloc(nbytes);

    CHECK(data);
    for (unsigned mode = 0; mode < 3 * 2; mode++) {
        struct s3dlio_reader_options options = small_blocks();

        if (!can_force(engines[mode % 3]))
            continue;
        force_engine(engines[mode % 3]);
        options.direct = mode / 3 ? S3DLIO_DIRECT_PREFER : S3DLIO_DIRECT_OFF;
        for (unsigned i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
            struct s3dlio_reader *reader;

            put_file(path, file, nbytes);
            reader = open_reader(&options);
            CHECK(truncate(path, (off_t)lengths[i]) == 0);
            CHECK_EQ(s3dlio_reader_read(reader, data, nbytes, 0, NULL), S3DLIO_E_TRUNCATED);
            CHECK_EQ(s3dlio_reader_read(reader, data, 600, nbytes - 600, NULL), S3DLIO_E_TRUNCATED);
            if (lengths[i] > 0)
                check_read(reader, file, nbytes, 3, lengths[i] - 3, 1);
            s3dlio_reader_free(reader);
        }
    }
    force_engine(NULL);
    free(data);
    free(file);
}

static void
what_is_no_file_is_refused(void)
{
    struct s3dlio_reader *reader = NULL;
    char name[PATH_MAX];

    CHECK_EQ(s3dlio_reader_open(&reader, join(name, folder, "none"), NULL), -ENOENT);
    CHECK_EQ(s3dlio_reader_open(&reader, "", NULL), -ENOENT);
    CHECK_EQ(s3dlio_reader_open(&reader, folder, NULL), -EISDIR);
    CHECK_EQ(s3dlio_reader_open(&reader, "/dev/null", NULL), S3DLIO_E_NOT_REGULAR);
    CHECK(mkfifo(join(name, folder, "fifo"), 0600) == 0);
    CHECK_EQ(s3dlio_reader_open(&reader, name, NULL), S3DLIO_E_NOT_REGULAR);
    CHECK(unlink(name) == 0);
    CHECK(!reader);
    s3dlio_reader_free(NULL);
}

static void
options_out_of_range_are_refused(void)
{
    struct s3dlio_reader_options bad[8];
    struct {
        struct s3dlio_reader_options known;
        uint64_t unknown;
    } newer = {small_blocks(), 1};
    struct s3dlio_reader *reader = NULL;
    unsigned n = 0;

    put_file(path, "abc", 3);
    for (unsigned i = 0; i < 8; i++)
        bad[i] = small_blocks();
    bad[n++].struct_nbytes = 0;
    bad[n++].block_nbytes = BLOCK - 1;
    bad[n++].block_nbytes = ((size_t)1 << 30) + 1;
    bad[n++].in_flight = 1025;
    bad[n++].direct = (enum s3dlio_direct)4;
    bad[n++].direct = (enum s3dlio_direct) - 1;
    bad[n++].slice_ms = -1;
    bad[n++].timeout_ms = -1;
    for (unsigned i = 0; i < n; i++)
        CHECK_EQ(s3dlio_reader_open(&reader, path, &bad[i]), -EINVAL);
    newer.known.struct_nbytes = sizeof newer;
    CHECK_EQ(s3dlio_reader_open(&reader, path, &newer.known), -E2BIG);
    force_engine("aio");
    CHECK_EQ(s3dlio_reader_open(&reader, path, NULL), S3DLIO_E_BAD_ENGINE);
    force_engine(NULL);
    CHECK(!reader);
}

static void
direct_on_tmpfs_falls_back_or_fails_if_required(void)
{
    struct s3dlio_reader_options options = small_blocks();
    struct s3dlio_reader *reader = NULL;
    unsigned char data[3];
    char shm[PATH_MAX], name[PATH_MAX];
    struct statfs fs;

    if (statfs("/dev/shm", &fs) != 0 || fs.f_type != 0x01021994) {
        printf("SKIPPED in part: /dev/shm is no tmpfs\n");
        return;
    }
    make_folder(shm, "/dev/shm");
    put_file(join(name, shm, "file"), "abc", 3);
    options.direct = S3DLIO_DIRECT_REQUIRE;
    CHECK_EQ(s3dlio_reader_open(&reader, name, &options), S3DLIO_E_NO_DIRECT);
    options.direct = S3DLIO_DIRECT_PREFER;
    CHECK_EQ(s3dlio_reader_open(&reader, name, &options), 0);
    CHECK_EQ(s3dlio_reader_is_direct(reader), 0);
    CHECK_EQ(s3dlio_reader_read(reader, data, 3, 0, NULL), 3);
    CHECK(memcmp(data, "abc", 3) == 0);
    s3dlio_reader_free(reader);
    remove_folder(shm);
}

static void
direct_is_what_the_kernel_knows_of_the_file(void)
{
    struct s3dlio_reader_options options = small_blocks();
    struct s3dlio_reader *reader;

    put_file(path, "abc", 3);
    for (int direct = S3DLIO_DIRECT_OFF; direct <= S3DLIO_DIRECT_PREFER; direct++) {
        options.direct = (enum s3dlio_direct)direct;
        reader = open_reader(&options);
        CHECK_EQ((open_file_flags(folder) & O_DIRECT) != 0, direct && folder_takes_direct);
        CHECK_EQ(s3dlio_reader_is_direct(reader), direct && folder_takes_direct);
        s3dlio_reader_free(reader);
    }
}

static int
is_direct_by_itself(void)
{
    struct s3dlio_reader_options options = small_blocks();
    struct s3dlio_reader *reader;
    int direct;

    options.direct = S3DLIO_DIRECT_AUTO;
    reader = open_reader(&options);
    direct = s3dlio_reader_is_direct(reader);
    s3dlio_reader_free(reader);
    return direct;
}

static void
auto_reads_a_long_file_directly_if_it_is_not_cached(void)
{
    static unsigned char data[16 * MIB];
    struct {
        uint64_t offset, nbytes;
    } range = {0, 0};
    uint64_t pages[5];
    int fd;

    put_file(path, data, sizeof data);
    CHECK_EQ(is_direct_by_itself(), 0);
    fd = open(path, O_RDWR);
    CHECK(fd >= 0);
    CHECK_EQ(fsync(fd), 0);
    CHECK_EQ(posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED), 0);
    if (syscall(451, fd, &range, pages, 0) != 0)
        printf("SKIPPED in part: no cachestat(2)\n");
    else
        CHECK_EQ(is_direct_by_itself(), folder_takes_direct);
    CHECK_EQ(pread(fd, data, 9 * MIB, 0), (ssize_t)(9 * MIB));
    CHECK_EQ(is_direct_by_itself(), 0);
    /* Shorter, it is not worth it. */
    CHECK_EQ(ftruncate(fd, (off_t)(16 * MIB) - 1), 0);
    CHECK_EQ(posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED), 0);
    CHECK_EQ(is_direct_by_itself(), 0);
    CHECK_EQ(close(fd), 0);
}

static void *
read_slowly(void *argument)
{
    unsigned char data[1000];

    while (s3dlio_reader_read(argument, data, sizeof data, 0, NULL) == S3DLIO_E_BUSY)
        ;
    return NULL;
}

static void
second_thread_gets_busy(void)
{
    struct s3dlio_reader *reader;
    unsigned char *file = make_data(1000, 11);
    pthread_t thread;
    int64_t result;

    put_file(path, file, 1000);
    reader = open_reader(NULL);
    fault = SLOW;
    CHECK(pthread_create(&thread, NULL, read_slowly, reader) == 0);
    while ((result = s3dlio_reader_read(reader, NULL, 0, 0, NULL)) == 0)
        ;
    CHECK_EQ(result, S3DLIO_E_BUSY);
    CHECK_EQ(s3dlio_reader_cancel(reader), S3DLIO_E_BUSY);
    CHECK(pthread_join(thread, NULL) == 0);
    fault = NO_FAULT;
    s3dlio_reader_free(reader);
    free(file);
}

static void
use_inherited_reader(void *argument)
{
    unsigned char data[10];
    int nfds = count_fds();

    CHECK_EQ(s3dlio_reader_read(argument, data, sizeof data, 0, NULL), S3DLIO_E_FORKED);
    CHECK_EQ(s3dlio_reader_cancel(argument), S3DLIO_E_FORKED);
    s3dlio_reader_free(argument);
    CHECK(count_fds() < nfds);
}

static void
forked_child_gets_forked_and_leaves_the_parent_well(void)
{
    const size_t nbytes = 40 * BLOCK + 7;
    unsigned char *file = make_data(nbytes, 12);

    put_file(path, file, nbytes);
    for (unsigned mode = 0; mode < 3 * 2; mode++) {
        struct s3dlio_reader_options options = small_blocks();
        struct room room = make_room(nbytes, 0);
        struct s3dlio_reader *reader;
        int64_t result;

        if (!can_force(engines[mode % 3])) {
            free(room.memory);
            continue;
        }
        force_engine(engines[mode % 3]);
        options.slice_ms = 1;
        options.in_flight = 1;
        options.direct = mode / 3 ? S3DLIO_DIRECT_PREFER : S3DLIO_DIRECT_OFF;
        reader = open_reader(&options);
        result = s3dlio_reader_read(reader, room.data, nbytes, 0, NULL);
        in_child(use_inherited_reader, reader); /* perhaps in the middle of a read */
        while (result == -EAGAIN)
            result = s3dlio_reader_read(reader, room.data, nbytes, 0, NULL);
        CHECK_EQ(result, nbytes);
        check_room(&room, file, nbytes);
        s3dlio_reader_free(reader);
        free(room.memory);
    }
    force_engine(NULL);
    free(file);
}

int
main(void)
{
    int nfds;

    deadline(240);
    force_engine(NULL);
    make_folder(folder, NULL);
    join(path, folder, "file");
    folder_takes_direct = takes_direct(folder);
    if (!folder_takes_direct)
        printf("SKIPPED in part: the temporary folder has no O_DIRECT\n");
    nfds = count_fds();

    every_range_gives_the_right_bytes_in_every_mode();
    random_ranges_give_the_right_bytes();
    engine_is_named_when_it_is_needed();
    short_and_broken_off_reads_are_finished();
    direct_refused_at_the_first_read_is_left();
    failing_reads_report_the_failure_and_the_next_read_works();
    slices_resume_with_the_same_arguments_only();
    nothing_is_written_after_cancel_or_free();
    replaced_file_is_read_as_it_was();
    truncated_file_is_an_error_and_never_short();
    what_is_no_file_is_refused();
    options_out_of_range_are_refused();
    direct_on_tmpfs_falls_back_or_fails_if_required();
    direct_is_what_the_kernel_knows_of_the_file();
    auto_reads_a_long_file_directly_if_it_is_not_cached();
    second_thread_gets_busy();
    forked_child_gets_forked_and_leaves_the_parent_well();

    CHECK_EQ(count_fds(), nfds);
    remove_folder(folder);
    return 0;
}
