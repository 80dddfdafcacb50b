/* The reader where the kernel refuses, is slow, or does not tell the truth. */
#include "faults.h"
#include "s3dlio/reader.h"
#include "s3dlio/status.h"

#define BLOCK (64 * KIB)

FAULTY_FCNTL()

static struct fault fstat_fault;
/* So many calls say that the file is empty. */
static int nempty;

int
fstat(int fd, struct stat *file)
{
    int status = fires(&fstat_fault) ? -1 : fstatat(fd, "", file, AT_EMPTY_PATH);

    if (nempty > 0) {
        nempty--;
        file->st_size = 0;
    }
    return status;
}

static atomic_int slow_ms;

ssize_t
pread(int fd, void *data, size_t nbytes, off_t offset)
{
    if (slow_ms)
        sleep_ms(slow_ms);
    return syscall(SYS_pread64, fd, data, nbytes, offset);
}

#ifdef S3DLIO_HAVE_URING
struct io_uring;

FAULTY_RETURNING(-io_uring_submit_fault.error, int, io_uring_submit, (struct io_uring * ring),
                 (ring))
#endif

static char folder[PATH_MAX];
static char path[PATH_MAX];
static unsigned char *data, *room;

static struct s3dlio_reader *
open_reader(const char *engine, int slice_ms, int timeout_ms)
{
    struct s3dlio_reader_options options = {.struct_nbytes = sizeof options,
                                            .block_nbytes = BLOCK,
                                            .in_flight = 2,
                                            .slice_ms = slice_ms,
                                            .timeout_ms = timeout_ms};
    struct s3dlio_reader *reader = NULL;

    force_engine(engine);
    CHECK_EQ(s3dlio_reader_open(&reader, path, &options), 0);
    return reader;
}

static void
check_whole_read(struct s3dlio_reader *reader)
{
    memset(room, 0, 4 * BLOCK);
    CHECK_EQ(s3dlio_reader_read(reader, room, 4 * BLOCK, 0, NULL), 4 * BLOCK);
    CHECK(memcmp(room, data, 4 * BLOCK) == 0);
}

static void
refusals_while_opening_are_reported_and_leave_nothing(void)
{
    struct s3dlio_reader *reader = NULL;
    int nfds = count_fds();

    CHECK_EQ(s3dlio_reader_open(&reader, NULL, NULL), -EINVAL);
    fail(&fstat_fault, EIO, 1);
    CHECK_EQ(s3dlio_reader_open(&reader, path, NULL), -EIO);
    check_fired(&fstat_fault);
    fail(&fcntl_fault, EPERM, 1);
    CHECK_EQ(s3dlio_reader_open(&reader, path, NULL), -EPERM);
    check_fired(&fcntl_fault);
    CHECK(!reader);
    CHECK_EQ(count_fds(), nfds);
}

static void
content_without_a_size_is_refused_and_never_taken_for_nothing(void)
{
    struct s3dlio_reader *reader = NULL;
    char name[PATH_MAX];

    CHECK_EQ(s3dlio_reader_open(&reader, "/proc/self/status", NULL), S3DLIO_E_NOT_REGULAR);
    nempty = 2;
    CHECK_EQ(s3dlio_reader_open(&reader, path, NULL), S3DLIO_E_NOT_REGULAR);
    nempty = 1;
    fail_after(&fstat_fault, 1, EIO, 1);
    CHECK_EQ(s3dlio_reader_open(&reader, path, NULL), S3DLIO_E_NOT_REGULAR);
    check_fired(&fstat_fault);
    CHECK(!reader);
    /* Written to meanwhile: it has a size now. */
    nempty = 1;
    CHECK_EQ(s3dlio_reader_open(&reader, path, NULL), 0);
    CHECK_EQ(s3dlio_reader_nbytes(reader), 4 * BLOCK);
    s3dlio_reader_free(reader);
    put_file(join(name, folder, "empty"), "", 0);
    CHECK_EQ(s3dlio_reader_open(&reader, name, NULL), 0);
    CHECK_EQ(s3dlio_reader_read(reader, room, 10, 0, NULL), 0);
    s3dlio_reader_free(reader);
    CHECK(unlink(name) == 0);
}

/* Within one wait no piece came: not an error yet. */
static void
slow_device_is_waited_for(void)
{
    struct s3dlio_reader *reader = open_reader("threads", 0, 5000);

    slow_ms = 250;
    check_whole_read(reader);
    slow_ms = 0;
    s3dlio_reader_free(reader);
}

static void
device_without_progress_is_a_timeout_and_the_next_read_works(void)
{
    struct s3dlio_reader *reader = open_reader("threads", 0, 1);
    uint64_t begin = now_ms();

    slow_ms = 400;
    CHECK_EQ(s3dlio_reader_read(reader, room, 4 * BLOCK, 0, NULL), -ETIMEDOUT);
    CHECK(now_ms() - begin >= 300); /* the memory is the caller's again */
    memset(room, 0, 4 * BLOCK);
    slow_ms = 0;
    CHECK_EQ(s3dlio_reader_cancel(reader), 0);
    check_whole_read(reader);
    s3dlio_reader_free(reader);
}

static void
unfinished_read_goes_on_with_the_same_arguments_only(void)
{
    struct s3dlio_reader *reader = open_reader("threads", 1, 0);
    uint32_t crc32c = 0;
    int64_t n;

    slow_ms = 30;
    CHECK_EQ(s3dlio_reader_read(reader, room, 4 * BLOCK, 0, &crc32c), -EAGAIN);
    CHECK_EQ(s3dlio_reader_read(reader, room, 4 * BLOCK, 0, NULL), -EINVAL);
    CHECK_EQ(s3dlio_reader_read(reader, room, 4 * BLOCK - 1, 0, &crc32c), -EINVAL);
    CHECK_EQ(s3dlio_reader_read(reader, room, 4 * BLOCK, 1, &crc32c), -EINVAL);
    CHECK_EQ(s3dlio_reader_read(reader, room + 1, 4 * BLOCK, 0, &crc32c), -EINVAL);
    s3dlio_reader_free(reader);

    reader = open_reader("threads", 1, 0);
    CHECK_EQ(s3dlio_reader_read(reader, room, 3 * BLOCK, 0, &crc32c), -EAGAIN);
    CHECK_EQ(s3dlio_reader_read(reader, room, 3 * BLOCK, 1, &crc32c), -EINVAL);
    CHECK_EQ(s3dlio_reader_cancel(reader), 0);
    CHECK_EQ(s3dlio_reader_read(reader, room, 4 * BLOCK, 0, &crc32c), -EAGAIN);
    slow_ms = 0;
    while ((n = s3dlio_reader_read(reader, room, 4 * BLOCK, 0, &crc32c)) == -EAGAIN)
        ;
    CHECK_EQ(n, 4 * BLOCK);
    CHECK(memcmp(room, data, 4 * BLOCK) == 0);
    CHECK_EQ(crc32c, slow_crc32c(0, data, 4 * BLOCK));
    s3dlio_reader_free(reader);
}

static void
broken_ring_is_an_error_and_the_next_read_has_a_new_one(void)
{
#ifdef S3DLIO_HAVE_URING
    struct s3dlio_reader *reader;

    if (!has_uring())
        return;
    reader = open_reader("uring", 0, 0);
    fail(&io_uring_submit_fault, EIO, 1000);
    CHECK_EQ(s3dlio_reader_read(reader, room, 4 * BLOCK, 0, NULL), -EIO);
    check_fired(&io_uring_submit_fault);
    check_whole_read(reader);
    s3dlio_reader_free(reader);
#endif
}

int
main(void)
{
    int nfds;

    deadline(120);
    make_folder(folder, NULL);
    data = make_data(4 * BLOCK, 1);
    room = malloc(4 * BLOCK + 1);
    CHECK(room);
    put_file(join(path, folder, "file"), data, 4 * BLOCK);
    nfds = count_fds();

    refusals_while_opening_are_reported_and_leave_nothing();
    content_without_a_size_is_refused_and_never_taken_for_nothing();
    slow_device_is_waited_for();
    device_without_progress_is_a_timeout_and_the_next_read_works();
    unfinished_read_goes_on_with_the_same_arguments_only();
    broken_ring_is_an_error_and_the_next_read_has_a_new_one();

    CHECK_EQ(count_fds(), nfds);
    free(data);
    free(room);
    remove_folder(folder);
    return 0;
}
