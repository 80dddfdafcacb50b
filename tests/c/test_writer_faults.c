/* The writer where the kernel refuses or is slow, and how much space it asks for ahead. */
#include <pthread.h>
#include <sys/statvfs.h>

#include "faults.h"
#include "s3dlio/status.h"
#include "s3dlio/writer.h"

#define BLOCK (64 * KIB)

FAULTY(int, ftruncate, (int fd, off_t nbytes), (fd, nbytes))
FAULTY_RETURNING(pthread_create_fault.error, int, pthread_create,
                 (pthread_t * thread, const pthread_attr_t *attributes, void *(*run)(void *),
                  void *argument),
                 (thread, attributes, run, argument))

#ifdef S3DLIO_HAVE_URING
struct io_uring;

FAULTY_RETURNING(-io_uring_submit_fault.error, int, io_uring_submit, (struct io_uring * ring),
                 (ring))
#endif

/* Space: asked for in calls of which each is noted; a disk of any size. */
static struct fault fallocate_fault, fstatvfs_fault;
static uint64_t free_nbytes;
static unsigned nreserved;
static uint64_t reserved_end, least_reserved, most_reserved;

int
fallocate(int fd, int mode, off_t offset, off_t nbytes)
{
    (void)fd;
    if (fires(&fallocate_fault))
        return -1;
    CHECK(mode == 0 || mode == FALLOC_FL_KEEP_SIZE);
    CHECK_EQ(offset, reserved_end);
    nreserved++;
    reserved_end = (uint64_t)(offset + nbytes);
    if (least_reserved == 0 || (uint64_t)nbytes < least_reserved)
        least_reserved = (uint64_t)nbytes;
    if ((uint64_t)nbytes > most_reserved)
        most_reserved = (uint64_t)nbytes;
    return 0;
}

int
fstatvfs(int fd, struct statvfs *fs)
{
    (void)fd;
    if (fires(&fstatvfs_fault))
        return -1;
    memset(fs, 0, sizeof *fs);
    fs->f_frsize = 4096;
    fs->f_bavail = free_nbytes / 4096;
    return 0;
}

static atomic_int slow_ms;
static atomic_bool writes_are_dropped;

ssize_t
pwrite(int fd, const void *data, size_t nbytes, off_t offset)
{
    if (slow_ms)
        sleep_ms(slow_ms);
    return writes_are_dropped ? (ssize_t)nbytes
                              : (ssize_t)syscall(SYS_pwrite64, fd, data, nbytes, offset);
}

int
fsync(int fd)
{
    if (slow_ms)
        sleep_ms(slow_ms);
    return (int)syscall(SYS_fsync, fd);
}

static char folder[PATH_MAX];
static char path[PATH_MAX];
static unsigned char *data;

static struct s3dlio_writer_options
small_blocks(void)
{
    return (struct s3dlio_writer_options){.struct_nbytes = sizeof(struct s3dlio_writer_options),
                                          .block_nbytes = BLOCK,
                                          .in_flight = 2,
                                          .durability = S3DLIO_DURABILITY_NONE};
}

static struct s3dlio_writer *
open_writer(const char *engine, const struct s3dlio_writer_options *options)
{
    struct s3dlio_writer *writer = NULL;

    force_engine(engine);
    put_file(path, "before", 6);
    CHECK_EQ(s3dlio_writer_open(&writer, path, options), 0);
    return writer;
}

/* Ends with this failure, and the old file is there as before. */
static void
check_failed(struct s3dlio_writer *writer, int error)
{
    CHECK_EQ(s3dlio_writer_close(writer), error);
    CHECK_EQ(s3dlio_writer_write(writer, data, 1, &(size_t){0}), error);
    s3dlio_writer_free(writer);
    CHECK(holds(path, "before", 6));
    CHECK_EQ(count_entries(folder), 1);
    CHECK(unlink(path) == 0);
}

static void
no_path_is_invalid(void)
{
    struct s3dlio_writer *writer = NULL;

    CHECK_EQ(s3dlio_writer_open(&writer, NULL, NULL), -EINVAL);
    CHECK(!writer);
}

static void
broken_ring_is_an_error_that_sticks(void)
{
#ifdef S3DLIO_HAVE_URING
    struct s3dlio_writer_options options = small_blocks();
    struct s3dlio_writer *writer;

    if (!has_uring())
        return;
    writer = open_writer("uring", &options);
    fail(&io_uring_submit_fault, EIO, 1000);
    CHECK_EQ(s3dlio_writer_write(writer, data, 8 * BLOCK, NULL), -EIO);
    check_fired(&io_uring_submit_fault);
    check_failed(writer, -EIO);
#endif
}

static void
thread_that_does_not_start_is_an_error_and_no_slice(void)
{
    struct s3dlio_writer_options options = small_blocks();
    struct s3dlio_writer *writer;

    options.durability = S3DLIO_DURABILITY_DATA; /* what an empty file needs the thread for */
    writer = open_writer("threads", &options);
    fail(&pthread_create_fault, EAGAIN, 1000);
    check_failed(writer, -EBUSY);
    check_fired(&pthread_create_fault);
}

static void
tail_that_cannot_be_cut_off_is_an_error(bool direct)
{
    struct s3dlio_writer_options options = small_blocks();
    struct s3dlio_writer *writer;

    if (!direct)
        return;
    options.direct = S3DLIO_DIRECT_REQUIRE;
    writer = open_writer(NULL, &options);
    CHECK_EQ(s3dlio_writer_write(writer, data, 100, NULL), 0);
    fail(&ftruncate_fault, EIO, 1);
    check_failed(writer, -EIO);
    check_fired(&ftruncate_fault);
}

/* Nothing comes back within one wait: not an error yet. */
static void
slow_device_is_waited_for(void)
{
    struct s3dlio_writer_options options = small_blocks();
    struct s3dlio_writer *writer;

    options.timeout_ms = 5000;
    writer = open_writer("threads", &options);
    slow_ms = 250;
    CHECK_EQ(s3dlio_writer_write(writer, data, 4 * BLOCK, NULL), 0);
    CHECK_EQ(s3dlio_writer_close(writer), 0);
    slow_ms = 0;
    s3dlio_writer_free(writer);
    CHECK(holds(path, data, 4 * BLOCK));
    CHECK(unlink(path) == 0);
}

static void
device_without_progress_is_a_timeout(void)
{
    struct s3dlio_writer_options options = small_blocks();
    struct s3dlio_writer *writer;

    options.timeout_ms = 1;
    writer = open_writer("threads", &options);
    slow_ms = 400;
    CHECK_EQ(s3dlio_writer_write(writer, data, 8 * BLOCK, NULL), -ETIMEDOUT);
    slow_ms = 0;
    check_failed(writer, -ETIMEDOUT);
}

static void
close_returns_between_its_steps_and_goes_on(void)
{
    struct s3dlio_writer_options options = small_blocks();
    struct s3dlio_writer *writer;
    unsigned nagain = 0;
    size_t taken;
    int status;

    options.slice_ms = 1;
    options.durability = S3DLIO_DURABILITY_FULL;
    writer = open_writer("threads", &options);
    CHECK_EQ(s3dlio_writer_write(writer, data, 1000, &taken), 0);
    slow_ms = 20;
    while ((status = s3dlio_writer_close(writer)) == -EAGAIN) {
        CHECK(holds(path, "before", 6));
        nagain++;
    }
    slow_ms = 0;
    CHECK_EQ(status, 0);
    CHECK(nagain >= 2); /* after the write, and after the fsync */
    s3dlio_writer_free(writer);
    CHECK(holds(path, data, 1000));
    CHECK(unlink(path) == 0);
}

/* Writes so much with O_DIRECT that is not really written. */
static void
write_much(size_t nbytes)
{
    struct s3dlio_writer_options options = {.struct_nbytes = sizeof options,
                                            .direct = S3DLIO_DIRECT_REQUIRE,
                                            .durability = S3DLIO_DURABILITY_NONE};
    struct s3dlio_writer *writer = open_writer("threads", &options);
    struct stat file;

    nreserved = 0;
    reserved_end = least_reserved = most_reserved = 0;
    writes_are_dropped = true;
    for (size_t done = 0; done < nbytes; done += 4 * MIB)
        CHECK_EQ(s3dlio_writer_write(writer, data, 4 * MIB, NULL), 0);
    CHECK_EQ(s3dlio_writer_close(writer), 0);
    writes_are_dropped = false;
    s3dlio_writer_free(writer);
    CHECK(stat(path, &file) == 0);
    CHECK_EQ(file.st_size, nbytes);
    CHECK(unlink(path) == 0);
}

static void
space_is_reserved_ahead_within_bounds_and_only_where_there_is_plenty(bool direct)
{
    if (!direct)
        return;
    free_nbytes = (uint64_t)1 << 40;
    write_much(3072 * MIB);
    CHECK_EQ(least_reserved, 16 * MIB);
    CHECK_EQ(most_reserved, 1024 * MIB);
    CHECK(reserved_end >= 3072 * MIB);
    CHECK(nreserved < 12);

    free_nbytes = 255 * MIB; /* less than sixteen times the least */
    write_much(32 * MIB);
    CHECK_EQ(nreserved, 0);
    free_nbytes = 256 * MIB;
    write_much(32 * MIB);
    CHECK_EQ(nreserved, 1);
}

static void
space_that_is_refused_is_not_asked_for_again(bool direct)
{
    if (!direct)
        return;
    free_nbytes = (uint64_t)1 << 40;
    fail(&fallocate_fault, EOPNOTSUPP, 1000);
    write_much(64 * MIB);
    CHECK_EQ(fallocate_fault.nfired, 1);
    check_fired(&fallocate_fault);
    fail(&fstatvfs_fault, EIO, 1000);
    write_much(64 * MIB);
    CHECK_EQ(fstatvfs_fault.nfired, 1);
    check_fired(&fstatvfs_fault);
    CHECK_EQ(nreserved, 0);
}

int
main(void)
{
    bool direct;
    int nfds;

    deadline(120);
    make_folder(folder, NULL);
    join(path, folder, "file");
    direct = takes_direct(folder);
    if (!direct)
        printf("SKIPPED in part: the temporary folder has no O_DIRECT\n");
    data = make_data(4 * MIB, 1);
    nfds = count_fds();

    no_path_is_invalid();
    broken_ring_is_an_error_that_sticks();
    thread_that_does_not_start_is_an_error_and_no_slice();
    tail_that_cannot_be_cut_off_is_an_error(direct);
    slow_device_is_waited_for();
    device_without_progress_is_a_timeout();
    close_returns_between_its_steps_and_goes_on();
    space_is_reserved_ahead_within_bounds_and_only_where_there_is_plenty(direct);
    space_that_is_refused_is_not_asked_for_again(direct);

    CHECK_EQ(count_fds(), nfds);
    CHECK_EQ(count_entries(folder), 0);
    free(data);
    remove_folder(folder);
    return 0;
}
