/*
 * The writer as its caller sees it: the bytes in the file, what lies beside it, and the codes.
 * The kernel's answers to pwrite(), fsync() and fdatasync() are made worse on demand.
 */
#include "s3dlio/writer.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <zstd.h>

#include "s3dlio/status.h"
#include "support.h"

#define BLOCK (64 * KIB)

static char folder[PATH_MAX];
static char path[PATH_MAX]; /* the file that most tests write */
static bool folder_takes_direct;

/* Faults: these definitions take the place of the C library's in this program. */

enum fault { NO_FAULT, REFUSE_DIRECT, CUT_SHORT, INTERRUPT };

static atomic_int fault = NO_FAULT;
static atomic_int fsync_error, fdatasync_error;
static atomic_uint npwrite, nfsync, nfdatasync;

ssize_t
pwrite(int fd, const void *data, size_t nbytes, off_t offset)
{
    unsigned n = atomic_fetch_add(&npwrite, 1);

    if (fault == REFUSE_DIRECT && (fcntl(fd, F_GETFL) & O_DIRECT)) {
        errno = EINVAL;
        return -1;
    }
    if (fault == INTERRUPT && n % 3 != 0) {
        errno = n % 3 == 1 ? EINTR : EAGAIN;
        return -1;
    }
    if (fault == CUT_SHORT) {
        if (fcntl(fd, F_GETFL) & O_DIRECT)
            nbytes = nbytes > 8192 ? nbytes / 2 / 4096 * 4096 : nbytes;
        else
            nbytes = nbytes > 100 ? nbytes / 3 : nbytes;
    }
    return syscall(SYS_pwrite64, fd, data, nbytes, offset);
}

static int
fail_or_call(atomic_uint *count, int error, long call, int fd)
{
    atomic_fetch_add(count, 1);
    if (error) {
        errno = error;
        return -1;
    }
    return (int)syscall(call, fd);
}

int
fsync(int fd)
{
    return fail_or_call(&nfsync, fsync_error, SYS_fsync, fd);
}

int
fdatasync(int fd)
{
    return fail_or_call(&nfdatasync, fdatasync_error, SYS_fdatasync, fd);
}

/* Small blocks, so that little data makes many. */
static struct s3dlio_writer_options
small_blocks(void)
{
    return (struct s3dlio_writer_options){.struct_nbytes = sizeof(struct s3dlio_writer_options),
                                          .block_nbytes = BLOCK,
                                          .in_flight = 3,
                                          .durability = S3DLIO_DURABILITY_DATA};
}

static struct s3dlio_writer *
open_writer(const struct s3dlio_writer_options *options)
{
    struct s3dlio_writer *writer = NULL;

    CHECK_EQ(s3dlio_writer_open(&writer, path, options), 0);
    return writer;
}

static struct s3dlio_writer_stats
stats_of(struct s3dlio_writer *writer)
{
    struct s3dlio_writer_stats stats;

    CHECK_EQ(s3dlio_writer_get_stats(writer, &stats, sizeof stats), 0);
    return stats;
}

static void
write_all(struct s3dlio_writer *writer, const void *data, size_t nbytes)
{
    size_t taken = 12345;

    CHECK_EQ(s3dlio_writer_write(writer, data, nbytes, &taken), 0);
    CHECK_EQ(taken, nbytes);
}

/* In pieces of any size, now and then of none. */
static void
write_pieces(struct s3dlio_writer *writer, const unsigned char *data, size_t nbytes, uint64_t seed)
{
    uint64_t state = seed * 77 + 1;

    for (size_t done = 0; done < nbytes;) {
        size_t piece = random_between(&state, 0, random_between(&state, 0, 2 * BLOCK));

        if (piece > nbytes - done)
            piece = nbytes - done;
        write_all(writer, data + done, piece);
        done += piece;
    }
}

static bool
decodes_to(const char *name, const void *data, size_t nbytes)
{
    size_t packed_nbytes;
    unsigned char *packed = get_file(name, &packed_nbytes);
    unsigned char *unpacked = malloc(nbytes + 1);
    size_t n;
    bool same;

    CHECK(unpacked);
    n = ZSTD_decompress(unpacked, nbytes + 1, packed, packed_nbytes);
    same = n == nbytes && memcmp(unpacked, data, nbytes) == 0;
    free(packed);
    free(unpacked);
    return same;
}

static void
check_crc_of_file(const struct s3dlio_writer_stats *stats)
{
    size_t nbytes;
    unsigned char *file = get_file(path, &nbytes);

    CHECK_EQ(stats->stored_nbytes, nbytes);
    CHECK_EQ(stats->stored_crc32c, slow_crc32c(0, file, nbytes));
    free(file);
}

static const char *
expected_engine(const struct s3dlio_writer_options *options, const char *forced,
                uint64_t stored_nbytes)
{
    if (forced)
        return strcmp(forced, "uring") == 0 ? "io_uring" : "threads";
    if (stored_nbytes < BLOCK)
        return "pwrite";
    /* What the page cache keeps, and nothing waits for. */
    if (options->durability == S3DLIO_DURABILITY_NONE &&
        !(options->direct == S3DLIO_DIRECT_PREFER && folder_takes_direct))
        return "pwrite";
    return has_uring() ? "io_uring" : "threads";
}

/* One file from its opening to its end. */
static void
write_one(const struct s3dlio_writer_options *options, const char *engine,
          const unsigned char *data, size_t nbytes)
{
    struct s3dlio_writer_stats stats;
    struct s3dlio_writer *writer;
    bool replaces = nbytes % 2 == 0;

    if (replaces)
        put_file(path, "before", 6);
    writer = open_writer(options);
    write_pieces(writer, data, nbytes, nbytes + 3);
    CHECK_EQ(exists(path), replaces);
    CHECK(!replaces || holds(path, "before", 6));
    CHECK_EQ(stats_of(writer).published, 0);
    CHECK_EQ(s3dlio_writer_close(writer), 0);

    CHECK_EQ(count_entries(folder), 1);
    CHECK(options->zstd_level ? decodes_to(path, data, nbytes) : holds(path, data, nbytes));
    stats = stats_of(writer);
    CHECK_EQ(stats.raw_nbytes, nbytes);
    CHECK_EQ(stats.raw_crc32c, slow_crc32c(0, data, nbytes));
    CHECK_EQ(stats.block_nbytes, BLOCK);
    CHECK_EQ(stats.nblocks, (stats.stored_nbytes + BLOCK - 1) / BLOCK);
    check_crc_of_file(&stats);
    CHECK(strcmp(stats.engine, expected_engine(options, engine, stats.stored_nbytes)) == 0);
    CHECK(!stats.registered || strcmp(stats.engine, "io_uring") == 0);
    CHECK_EQ(stats.direct, options->direct == S3DLIO_DIRECT_PREFER && folder_takes_direct);
    CHECK_EQ(stats.published, 1);
    if (stats.direct)
        CHECK_EQ(stats.direct_error, 0);
    s3dlio_writer_free(writer);
    CHECK(unlink(path) == 0);
}

static void
every_size_gives_the_same_bytes_in_every_mode(void)
{
    static const size_t sizes[] = {0,         1,     511,       512,           513,
                                   4095,      4096,  4097,      BLOCK - 1,     BLOCK,
                                   BLOCK + 1, 65600, 5 * BLOCK, 7 * BLOCK + 33};
    static const char *const engines[] = {NULL, "uring", "threads"};
    unsigned char *data = make_data(8 * BLOCK, 1);

    for (unsigned mode = 0; mode < 3 * 2 * 2; mode++) {
        struct s3dlio_writer_options options = small_blocks();
        const char *engine = engines[mode % 3];

        if (engine && strcmp(engine, "uring") == 0 && !has_uring())
            continue;
        force_engine(engine);
        options.direct = mode / 3 % 2 ? S3DLIO_DIRECT_PREFER : S3DLIO_DIRECT_OFF;
        options.zstd_level = mode / 6 ? 1 : 0;
        options.zstd_workers = mode % 2 ? 2 : 0;
        for (unsigned i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
            options.durability = (enum s3dlio_durability)((i + mode) % 3);
            write_one(&options, engine, data, sizes[i]);
        }
    }
    force_engine(NULL);
    free(data);
}

static void
page_cache_takes_blocks_in_short_steps_when_nothing_waits_for_them(void)
{
    struct s3dlio_writer_options options = small_blocks();
    struct s3dlio_writer *writer;
    unsigned char *data = make_data(5 << 20, 9);
    unsigned before = npwrite;

    options.durability = S3DLIO_DURABILITY_NONE;
    options.block_nbytes = 4 << 20;
    writer = open_writer(&options);
    write_all(writer, data, 4 << 20);
    CHECK_EQ(npwrite - before, 4);
    write_all(writer, data + (4 << 20), 1 << 20);
    CHECK_EQ(s3dlio_writer_close(writer), 0);
    CHECK_EQ(npwrite - before, 5);
    CHECK(strcmp(stats_of(writer).engine, "pwrite") == 0);
    CHECK(holds(path, data, 5 << 20));
    s3dlio_writer_free(writer);
    CHECK(unlink(path) == 0);
    free(data);
}

static void
short_and_broken_off_writes_are_finished(void)
{
    static const enum fault faults[] = {CUT_SHORT, INTERRUPT};
    unsigned char *data = make_data(8 * BLOCK, 2);

    for (unsigned mode = 0; mode < 2 * 2 * 3; mode++) {
        struct s3dlio_writer_options options = small_blocks();
        const char *engine = mode / 4 == 1 ? "threads" : NULL;
        bool quick = mode / 4 == 2;
        /* With the engine left open, only a file within one block goes through pwrite(), or one
         * that nothing waits for. */
        size_t nbytes = engine || quick ? 7 * BLOCK + 4097 : BLOCK - 3;

        force_engine(engine);
        fault = faults[mode % 2];
        npwrite = 1; /* so that already the first is interrupted */
        options.direct = !quick && mode / 2 % 2 ? S3DLIO_DIRECT_PREFER : S3DLIO_DIRECT_OFF;
        if (quick)
            options.durability = S3DLIO_DURABILITY_NONE;
        write_one(&options, engine, data, nbytes);
        CHECK(npwrite - 1 > (nbytes + BLOCK - 1) / BLOCK);
    }
    fault = NO_FAULT;
    force_engine(NULL);
    free(data);
}

static void
direct_refused_at_the_first_write_is_left(void)
{
    static const size_t sizes[] = {1, 4096, BLOCK - 1, 6 * BLOCK + 5};
    unsigned char *data = make_data(8 * BLOCK, 3);

    if (!folder_takes_direct) {
        free(data);
        return;
    }
    fault = REFUSE_DIRECT;
    force_engine("threads");
    for (unsigned i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        struct s3dlio_writer_options options = small_blocks();
        struct s3dlio_writer_stats stats;
        struct s3dlio_writer *writer;

        options.direct = S3DLIO_DIRECT_PREFER;
        force_engine(i == 2 ? NULL : "threads");
        writer = open_writer(&options);
        write_pieces(writer, data, sizes[i], i);
        CHECK_EQ(s3dlio_writer_close(writer), 0);
        stats = stats_of(writer);
        CHECK_EQ(stats.direct, 0);
        CHECK_EQ(stats.direct_error, -EINVAL);
        s3dlio_writer_free(writer);
        CHECK(holds(path, data, sizes[i]));

        options.direct = S3DLIO_DIRECT_REQUIRE;
        writer = open_writer(&options);
        (void)s3dlio_writer_write(writer, data, sizes[i], NULL);
        CHECK_EQ(s3dlio_writer_close(writer), S3DLIO_E_NO_DIRECT);
        s3dlio_writer_free(writer);
        CHECK(holds(path, data, sizes[i]));
        CHECK_EQ(count_entries(folder), 1);
        CHECK(unlink(path) == 0);
    }
    fault = NO_FAULT;
    force_engine(NULL);
    free(data);
}

static void
stats_tell_what_the_kernel_knows_of_the_file(void)
{
    unsigned char *data = make_data(5 * BLOCK, 4);

    for (int direct = S3DLIO_DIRECT_OFF; direct <= S3DLIO_DIRECT_PREFER; direct++) {
        struct s3dlio_writer_options options = small_blocks();
        struct s3dlio_writer *writer;
        long flags;

        options.direct = (enum s3dlio_direct)direct;
        writer = open_writer(&options);
        for (int round = 0; round < 2; round++) {
            flags = open_file_flags(folder);
            CHECK(flags >= 0);
            CHECK_EQ((flags & O_DIRECT) != 0, stats_of(writer).direct);
            CHECK_EQ((flags & O_DIRECT) != 0, direct && folder_takes_direct);
            write_all(writer, data, 5 * BLOCK);
        }
        CHECK_EQ(stats_of(writer).raw_nbytes, 10 * BLOCK);
        s3dlio_writer_free(writer);
    }
    free(data);
}

static void
direct_on_tmpfs_falls_back_or_fails_if_required(void)
{
    struct s3dlio_writer_options options = small_blocks();
    struct s3dlio_writer_stats stats;
    struct s3dlio_writer *writer = NULL;
    unsigned char *data;
    char shm[PATH_MAX], name[PATH_MAX];
    struct statfs fs;

    if (statfs("/dev/shm", &fs) != 0 || fs.f_type != 0x01021994) {
        printf("SKIPPED in part: /dev/shm is no tmpfs\n");
        return;
    }
    data = make_data(3 * BLOCK + 1, 5);
    make_folder(shm, "/dev/shm");
    join(name, shm, "file");
    options.direct = S3DLIO_DIRECT_PREFER;
    CHECK_EQ(s3dlio_writer_open(&writer, name, &options), 0);
    write_all(writer, data, 3 * BLOCK + 1);
    CHECK_EQ(s3dlio_writer_close(writer), 0);
    stats = stats_of(writer);
    CHECK_EQ(stats.direct, 0);
    CHECK_EQ(stats.direct_error, -EOPNOTSUPP);
    s3dlio_writer_free(writer);
    CHECK(holds(name, data, 3 * BLOCK + 1));
    CHECK(unlink(name) == 0);

    options.direct = S3DLIO_DIRECT_REQUIRE;
    CHECK_EQ(s3dlio_writer_open(&writer, name, &options), S3DLIO_E_NO_DIRECT);
    CHECK_EQ(count_entries(shm), 0);
    remove_folder(shm);
    free(data);
}

static void
reserved_space_is_given_back(void)
{
    struct s3dlio_writer_options options = small_blocks();
    unsigned char *data = make_data(3 * BLOCK, 6);
    struct s3dlio_writer *writer;
    struct stat file;

    options.direct = S3DLIO_DIRECT_PREFER;
    writer = open_writer(&options);
    write_all(writer, data, 3 * BLOCK);
    CHECK_EQ(s3dlio_writer_close(writer), 0);
    s3dlio_writer_free(writer);
    CHECK(stat(path, &file) == 0);
    CHECK_EQ(file.st_size, 3 * BLOCK);
    CHECK(file.st_blocks * 512 <= (off_t)(4 * BLOCK));
    CHECK(unlink(path) == 0);
    free(data);
}

/* Each engine, with writes on their way and with none. */
static void
abort_or_free_leaves_nothing_and_keeps_the_old_file(void)
{
    static const char *const engines[] = {NULL, "uring", "threads"};
    unsigned char *data = make_data(20 * BLOCK, 7);

    put_file(path, "before", 6);
    for (unsigned mode = 0; mode < 3 * 2 * 3; mode++) {
        struct s3dlio_writer_options options = small_blocks();
        struct s3dlio_writer *writer;
        const char *engine = engines[mode % 3];
        static const size_t sizes[] = {0, 100, 20 * BLOCK};

        if (engine && strcmp(engine, "uring") == 0 && !has_uring())
            continue;
        force_engine(engine);
        options.direct = S3DLIO_DIRECT_PREFER;
        options.zstd_level = mode % 2;
        options.zstd_workers = 2;
        writer = open_writer(&options);
        write_all(writer, data, sizes[mode / 6]);
        if (mode / 3 % 2) {
            s3dlio_writer_abort(writer);
            CHECK_EQ(count_entries(folder), 1);
            CHECK_EQ(s3dlio_writer_write(writer, data, 1, NULL), S3DLIO_E_CLOSED);
            CHECK_EQ(s3dlio_writer_close(writer), S3DLIO_E_CLOSED);
            s3dlio_writer_abort(writer);
        }
        s3dlio_writer_free(writer);
        CHECK_EQ(count_entries(folder), 1);
        CHECK(holds(path, "before", 6));
    }
    s3dlio_writer_abort(NULL);
    s3dlio_writer_free(NULL);
    force_engine(NULL);
    CHECK(unlink(path) == 0);
    free(data);
}

static void
close_is_final_and_may_be_repeated(void)
{
    struct s3dlio_writer *writer = open_writer(NULL);

    write_all(writer, "all", 3);
    CHECK_EQ(s3dlio_writer_close(writer), 0);
    CHECK_EQ(s3dlio_writer_write(writer, "more", 4, NULL), S3DLIO_E_CLOSED);
    CHECK_EQ(s3dlio_writer_write(writer, "", 0, NULL), S3DLIO_E_CLOSED);
    CHECK_EQ(s3dlio_writer_close(writer), 0);
    s3dlio_writer_abort(writer);
    CHECK_EQ(s3dlio_writer_close(writer), 0);
    CHECK(holds(path, "all", 3));
    s3dlio_writer_free(writer);
    CHECK(holds(path, "all", 3));
    CHECK(unlink(path) == 0);
}

/* The code comes from the write or, if the data fits into the blocks, from the close. */
static void
check_first_error_sticks(const char *name, const struct s3dlio_writer_options *options,
                         const unsigned char *data, size_t nbytes, int error)
{
    struct s3dlio_writer *writer = NULL;
    struct s3dlio_writer_stats stats;
    int status;

    CHECK_EQ(s3dlio_writer_open(&writer, name, options), 0);
    status = s3dlio_writer_write(writer, data, nbytes, NULL);
    CHECK(status == 0 || status == error);
    if (status)
        CHECK_EQ(s3dlio_writer_write(writer, data, 1, NULL), error);
    CHECK_EQ(s3dlio_writer_close(writer), error);
    CHECK_EQ(s3dlio_writer_close(writer), error);
    CHECK_EQ(s3dlio_writer_write(writer, data, 1, NULL), error);
    s3dlio_writer_abort(writer);
    CHECK_EQ(s3dlio_writer_close(writer), error);
    CHECK_EQ(s3dlio_writer_get_stats(writer, &stats, sizeof stats), 0);
    CHECK(stats.raw_nbytes <= nbytes);
    CHECK_EQ(stats.published, 0);
    s3dlio_writer_free(writer);
}

struct failing_mode {
    const char *engine;
    enum s3dlio_direct direct;
    size_t limit;
    size_t nbytes;
};

static void
write_over_the_file_size_limit(void *argument)
{
    const struct failing_mode *mode = argument;
    struct s3dlio_writer_options options = small_blocks();
    struct rlimit limit = {mode->limit, mode->limit};
    unsigned char *data = make_data(mode->nbytes, 8);

    signal(SIGXFSZ, SIG_IGN);
    CHECK(setrlimit(RLIMIT_FSIZE, &limit) == 0);
    force_engine(mode->engine);
    options.direct = mode->direct;
    check_first_error_sticks(path, &options, data, mode->nbytes, -EFBIG);
    _exit(0); /* the limit holds for counters as well, see leave_child() */
}

static void
file_size_limit_fails_for_good_and_keeps_the_old_file(void)
{
    static const struct failing_mode modes[] = {
        {NULL, S3DLIO_DIRECT_OFF, 1000, 5000},
        {NULL, S3DLIO_DIRECT_OFF, 3 * BLOCK + 100, 30 * BLOCK},
        {"uring", S3DLIO_DIRECT_OFF, 3 * BLOCK, 30 * BLOCK},
        {"uring", S3DLIO_DIRECT_PREFER, 3 * BLOCK, 30 * BLOCK},
        {"threads", S3DLIO_DIRECT_OFF, 3 * BLOCK, 30 * BLOCK},
        {"threads", S3DLIO_DIRECT_PREFER, 3 * BLOCK + 4096, 4 * BLOCK + 1},
    };

    put_file(path, "before", 6);
    for (unsigned i = 0; i < sizeof modes / sizeof modes[0]; i++) {
        if (modes[i].engine && strcmp(modes[i].engine, "uring") == 0 && !has_uring())
            continue;
        in_child(write_over_the_file_size_limit, (void *)&modes[i]);
        CHECK_EQ(count_entries(folder), 1);
        CHECK(holds(path, "before", 6));
    }
    CHECK(unlink(path) == 0);
}

static uint64_t
free_nbytes(const char *where)
{
    struct statfs fs;

    CHECK(statfs(where, &fs) == 0);
    return (uint64_t)fs.f_bfree * (uint64_t)fs.f_bsize;
}

/* Nothing may stay behind: neither a name nor, within the time that the kernel takes to tear a ring
 * down, space. */
static void
fill_up(const char *mount_point)
{
    static const char *const engines[] = {"uring", "threads"};
    unsigned char *data = make_data(64 * BLOCK, 9);
    char name[PATH_MAX];

    join(name, mount_point, "file");
    for (unsigned mode = 0; mode < 4; mode++) {
        struct s3dlio_writer_options options = small_blocks();
        uint64_t before;
        int nbefore;

        if (mode % 2 == 0 && !has_uring())
            continue;
        force_engine(engines[mode % 2]);
        put_file(name, "before", 6);
        nbefore = count_entries(mount_point);
        sync();
        before = free_nbytes(mount_point);
        options.direct = mode / 2 ? S3DLIO_DIRECT_PREFER : S3DLIO_DIRECT_OFF;
        /* Delayed allocation finds out at the latest here. */
        options.durability = S3DLIO_DURABILITY_DATA;
        check_first_error_sticks(name, &options, data, 64 * BLOCK, -ENOSPC);
        CHECK_EQ(count_entries(mount_point), nbefore);
        CHECK(holds(name, "before", 6));
        for (int i = 0; i < 500 && free_nbytes(mount_point) + BLOCK < before; i++)
            sleep_ms(10);
        CHECK(free_nbytes(mount_point) + BLOCK >= before);
    }
    free(data);
}

/* The mounts are this child's own, and end with it. */
static void
fill_up_tmpfs(void *argument)
{
    (void)argument;
    if (unshare(CLONE_NEWNS) != 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
        mount("none", folder, "tmpfs", 0, "size=1m") != 0)
        _exit(77);
    fill_up(folder);
}

static void
fill_up_ext4(void *argument)
{
    const char *image = argument;
    char command[3 * PATH_MAX];

    if (unshare(CLONE_NEWNS) != 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0)
        _exit(77);
    snprintf(command, sizeof command,
             "(truncate -s 4M '%s' && mkfs.ext4 -q -F -O ^has_journal -m 0 '%s' && "
             "mount -o loop '%s' '%s') >/dev/null 2>&1",
             image, image, image, folder);
    if (system(command) != 0)
        _exit(77);
    fill_up(folder);
}

static void
full_file_system_fails_for_good_and_keeps_the_old_file(void)
{
    char beside[PATH_MAX], image[PATH_MAX];
    int status;

    status = wait_for(start_child(fill_up_tmpfs, NULL));
    CHECK(status == 0 || status == 77);
    if (status)
        printf("SKIPPED in part: cannot mount a small tmpfs\n");
    make_folder(beside, NULL);
    join(image, beside, "image");
    status = wait_for(start_child(fill_up_ext4, image));
    CHECK(status == 0 || status == 77);
    if (status)
        printf("SKIPPED in part: cannot mount a small ext4\n");
    remove_folder(beside);
}

static void
durability_syncs_what_it_says(void)
{
    for (int durability = 0; durability <= S3DLIO_DURABILITY_NONE; durability++) {
        struct s3dlio_writer_options options = small_blocks();
        struct s3dlio_writer *writer;
        unsigned fsyncs = nfsync, fdatasyncs = nfdatasync;

        options.durability = (enum s3dlio_durability)durability;
        writer = open_writer(&options);
        write_all(writer, "x", 1);
        CHECK_EQ(s3dlio_writer_close(writer), 0);
        s3dlio_writer_free(writer);
        /* Of the file and of its folder; of the file; of nothing. */
        CHECK_EQ(nfsync - fsyncs, durability == S3DLIO_DURABILITY_FULL ? 2 : 0);
        CHECK_EQ(nfdatasync - fdatasyncs, durability == S3DLIO_DURABILITY_DATA ? 1 : 0);
        CHECK(unlink(path) == 0);
    }
}

static void
failed_sync_is_final_and_never_tried_again(void)
{
    static const char *const engines[] = {NULL, "threads"};

    put_file(path, "before", 6);
    for (unsigned mode = 0; mode < 4; mode++) {
        struct s3dlio_writer_options options = small_blocks();
        struct s3dlio_writer *writer;
        unsigned before = nfsync + nfdatasync;

        force_engine(engines[mode % 2]);
        options.durability = mode / 2 ? S3DLIO_DURABILITY_DATA : S3DLIO_DURABILITY_FULL;
        fsync_error = fdatasync_error = mode % 2 ? EIO : ENOSPC;
        writer = open_writer(&options);
        write_all(writer, "after", 5);
        CHECK_EQ(s3dlio_writer_close(writer), mode % 2 ? -EIO : -ENOSPC);
        CHECK_EQ(nfsync + nfdatasync - before, 1);
        fsync_error = fdatasync_error = 0;
        CHECK_EQ(s3dlio_writer_close(writer), mode % 2 ? -EIO : -ENOSPC);
        CHECK_EQ(nfsync + nfdatasync - before, 1);
        s3dlio_writer_free(writer);
        CHECK(holds(path, "before", 6));
        CHECK_EQ(count_entries(folder), 1);
    }
    force_engine(NULL);
    CHECK(unlink(path) == 0);
}

/* The last step comes after the name is in place, and the header says so.  With io_uring the file's
 * own fsync does not pass through here, so that the folder's is the first to fail. */
static void
failed_sync_of_the_folder_is_reported_with_the_file_in_place(void)
{
    struct s3dlio_writer_options options = small_blocks();
    struct s3dlio_writer *writer;

    if (!has_uring())
        return;
    force_engine("uring");
    options.durability = S3DLIO_DURABILITY_FULL;
    writer = open_writer(&options);
    write_all(writer, "after", 5);
    fsync_error = EIO;
    CHECK_EQ(s3dlio_writer_close(writer), -EIO);
    fsync_error = 0;
    CHECK_EQ(s3dlio_writer_close(writer), -EIO);
    CHECK_EQ(stats_of(writer).published, 1);
    s3dlio_writer_free(writer);
    CHECK(holds(path, "after", 5));
    CHECK_EQ(count_entries(folder), 1);
    force_engine(NULL);
    CHECK(unlink(path) == 0);
}

static void
slices_return_again_and_resume_with_the_right_bytes(void)
{
    const size_t nbytes = 48 * MIB + 123;
    unsigned char *data = make_text(nbytes, 10);

    for (int level = 0; level <= 1; level++) {
        struct s3dlio_writer_options options = small_blocks();
        struct s3dlio_writer *writer;
        unsigned nagain = 0;
        int status;

        options.in_flight = 1;
        options.direct = S3DLIO_DIRECT_PREFER;
        options.durability = S3DLIO_DURABILITY_FULL;
        options.zstd_level = level;
        options.slice_ms = 1;
        writer = open_writer(&options);
        CHECK_EQ(s3dlio_writer_write(writer, data, nbytes, NULL), -EINVAL);
        for (size_t done = 0; done < nbytes;) {
            size_t taken = 12345;

            status = s3dlio_writer_write(writer, data + done, nbytes - done, &taken);
            CHECK(taken <= nbytes - done);
            done += taken;
            CHECK(status == 0 || status == -EAGAIN);
            CHECK_EQ(status == 0, done == nbytes);
            nagain += status == -EAGAIN;
        }
        CHECK(nagain > 0);
        CHECK(!exists(path));
        while ((status = s3dlio_writer_close(writer)) == -EAGAIN)
            CHECK_EQ(s3dlio_writer_write(writer, data, 1, &(size_t){0}), S3DLIO_E_CLOSED);
        CHECK_EQ(status, 0);
        CHECK_EQ(stats_of(writer).raw_nbytes, nbytes);
        s3dlio_writer_free(writer);
        CHECK(level ? decodes_to(path, data, nbytes) : holds(path, data, nbytes));
        CHECK(unlink(path) == 0);
    }
    free(data);
}

struct long_write {
    struct s3dlio_writer *writer;
    const unsigned char *data;
    size_t nbytes;
};

static void *
write_long(void *argument)
{
    struct long_write *job = argument;
    int status;

    /* The other thread's trials may have come first. */
    while ((status = s3dlio_writer_write(job->writer, job->data, job->nbytes, NULL)) ==
           S3DLIO_E_BUSY)
        ;
    CHECK_EQ(status, 0);
    return NULL;
}

static void
second_thread_gets_busy(void)
{
    const size_t nbytes = 2 * MIB;
    struct s3dlio_writer_options options = small_blocks();
    struct long_write job = {NULL, make_text(nbytes, 11), nbytes};
    struct s3dlio_writer_stats stats;
    pthread_t thread;
    int status;

    options.zstd_level = 16; /* keeps the thread inside for a while */
    job.writer = open_writer(&options);
    CHECK(pthread_create(&thread, NULL, write_long, &job) == 0);
    while ((status = s3dlio_writer_write(job.writer, "", 0, NULL)) == 0)
        ;
    CHECK_EQ(status, S3DLIO_E_BUSY);
    CHECK_EQ(s3dlio_writer_close(job.writer), S3DLIO_E_BUSY);
    CHECK_EQ(s3dlio_writer_get_stats(job.writer, &stats, sizeof stats), S3DLIO_E_BUSY);
    s3dlio_writer_abort(job.writer);
    CHECK(pthread_join(thread, NULL) == 0);
    CHECK_EQ(s3dlio_writer_close(job.writer), 0);
    s3dlio_writer_free(job.writer);
    CHECK(decodes_to(path, job.data, nbytes));
    CHECK(unlink(path) == 0);
    free((void *)job.data);
}

static void
use_inherited_writer(void *argument)
{
    struct s3dlio_writer *writer = argument;
    struct s3dlio_writer_stats stats;
    size_t taken = 12345;
    int nfds = count_fds();

    CHECK_EQ(s3dlio_writer_write(writer, "child", 5, &taken), S3DLIO_E_FORKED);
    CHECK_EQ(taken, 0);
    CHECK_EQ(s3dlio_writer_append(writer, "child", 5), 0);
    CHECK_EQ(s3dlio_writer_close(writer), S3DLIO_E_FORKED);
    CHECK_EQ(s3dlio_writer_get_stats(writer, &stats, sizeof stats), S3DLIO_E_FORKED);
    s3dlio_writer_abort(writer);
    s3dlio_writer_free(writer);
    CHECK(count_fds() < nfds);
}

static void
forked_child_gets_forked_and_leaves_the_file_alone(void)
{
    static const char *const engines[] = {NULL, "uring", "threads"};
    unsigned char *data = make_data(20 * BLOCK + 9, 12);

    for (unsigned mode = 0; mode < 3 * 2 * 2; mode++) {
        struct s3dlio_writer_options options = small_blocks();
        const char *engine = engines[mode % 3];
        size_t first = mode / 6 ? 10 * BLOCK : 5;
        struct s3dlio_writer *writer;

        if (engine && strcmp(engine, "uring") == 0 && !has_uring())
            continue;
        force_engine(engine);
        options.direct = S3DLIO_DIRECT_PREFER;
        options.zstd_level = mode / 3 % 2;
        options.zstd_workers = 2;
        writer = open_writer(&options);
        write_all(writer, data, first);
        in_child(use_inherited_writer, writer);
        write_all(writer, data + first, 20 * BLOCK + 9 - first);
        CHECK(!exists(path));
        in_child(use_inherited_writer, writer);
        CHECK_EQ(s3dlio_writer_close(writer), 0);
        s3dlio_writer_free(writer);
        CHECK(options.zstd_level ? decodes_to(path, data, 20 * BLOCK + 9)
                                 : holds(path, data, 20 * BLOCK + 9));
        CHECK(unlink(path) == 0);
    }
    force_engine(NULL);
    free(data);
}

static void
options_out_of_range_are_refused_and_leave_nothing(void)
{
    struct s3dlio_writer_options bad[13];
    struct s3dlio_writer *writer = NULL;
    unsigned n = 0;

    for (unsigned i = 0; i < 13; i++)
        bad[i] = small_blocks();
    bad[n++].struct_nbytes = 0;
    bad[n++].block_nbytes = 1;
    bad[n++].block_nbytes = BLOCK - 1;
    bad[n++].block_nbytes = ((size_t)1 << 30) + 1;
    bad[n++].block_nbytes = SIZE_MAX;
    bad[n++].in_flight = 1025;
    bad[n++].zstd_level = 23;
    bad[n++].zstd_level = -1;
    bad[n++].durability = (enum s3dlio_durability)3;
    bad[n++].direct = (enum s3dlio_direct)4;
    bad[n++].direct = (enum s3dlio_direct) - 1;
    bad[n++].slice_ms = -1;
    bad[n++].timeout_ms = -1;
    for (unsigned i = 0; i < n; i++) {
        CHECK_EQ(s3dlio_writer_open(&writer, path, &bad[i]), -EINVAL);
        CHECK(!writer);
    }
    force_engine("aio");
    CHECK_EQ(s3dlio_writer_open(&writer, path, NULL), S3DLIO_E_BAD_ENGINE);
    force_engine("");
    writer = open_writer(NULL);
    s3dlio_writer_free(writer);
    force_engine(NULL);
    CHECK_EQ(count_entries(folder), 0);
}

static void
options_and_stats_may_be_of_another_version(void)
{
    struct {
        struct s3dlio_writer_options known;
        uint64_t unknown;
    } newer = {small_blocks(), 0};
    struct {
        struct s3dlio_writer_stats known;
        uint64_t unknown;
    } newer_stats;
    struct s3dlio_writer_options older = small_blocks();
    struct s3dlio_writer *writer = NULL;
    uint64_t raw_nbytes[2] = {0, 12345};

    newer.known.struct_nbytes = sizeof newer;
    newer.unknown = 1;
    CHECK_EQ(s3dlio_writer_open(&writer, path, &newer.known), -E2BIG);
    newer.unknown = 0;
    writer = open_writer(&newer.known);
    s3dlio_writer_free(writer);

    /* Knows no field after 'block_nbytes'; what lies there must not be read. */
    older.struct_nbytes = offsetof(struct s3dlio_writer_options, in_flight);
    older.in_flight = 4000000;
    older.slice_ms = -1;
    writer = open_writer(&older);
    write_all(writer, "abc", 3);
    s3dlio_writer_get_stats(writer, (struct s3dlio_writer_stats *)raw_nbytes, sizeof raw_nbytes[0]);
    CHECK_EQ(raw_nbytes[0], 3);
    CHECK_EQ(raw_nbytes[1], 12345);
    newer_stats.unknown = 12345;
    s3dlio_writer_get_stats(writer, &newer_stats.known, sizeof newer_stats);
    CHECK_EQ(newer_stats.known.raw_nbytes, 3);
    CHECK_EQ(newer_stats.unknown, 0);
    s3dlio_writer_free(writer);
}

/* Everything by default: 4 MiB blocks, full durability. */
static void
defaults_write_many_mebibytes(void)
{
    const size_t nbytes = 50 * MIB + 1;
    unsigned char *data = make_data(nbytes, 13);
    struct s3dlio_writer *writer = open_writer(NULL);

    write_all(writer, data, nbytes);
    CHECK_EQ(s3dlio_writer_close(writer), 0);
    CHECK_EQ(stats_of(writer).nblocks, 13);
    CHECK_EQ(stats_of(writer).block_nbytes, 4 * MIB);
    s3dlio_writer_free(writer);
    CHECK(holds(path, data, nbytes));
    CHECK(unlink(path) == 0);
    free(data);
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

    every_size_gives_the_same_bytes_in_every_mode();
    page_cache_takes_blocks_in_short_steps_when_nothing_waits_for_them();
    short_and_broken_off_writes_are_finished();
    direct_refused_at_the_first_write_is_left();
    stats_tell_what_the_kernel_knows_of_the_file();
    direct_on_tmpfs_falls_back_or_fails_if_required();
    reserved_space_is_given_back();
    abort_or_free_leaves_nothing_and_keeps_the_old_file();
    close_is_final_and_may_be_repeated();
    file_size_limit_fails_for_good_and_keeps_the_old_file();
    full_file_system_fails_for_good_and_keeps_the_old_file();
    durability_syncs_what_it_says();
    failed_sync_is_final_and_never_tried_again();
    failed_sync_of_the_folder_is_reported_with_the_file_in_place();
    slices_return_again_and_resume_with_the_right_bytes();
    second_thread_gets_busy();
    forked_child_gets_forked_and_leaves_the_file_alone();
    options_out_of_range_are_refused_and_leave_nothing();
    options_and_stats_may_be_of_another_version();
    defaults_write_many_mebibytes();

    CHECK_EQ(count_entries(folder), 0);
    CHECK_EQ(count_fds(), nfds);
    remove_folder(folder);
    return 0;
}
