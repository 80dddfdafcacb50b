/* The engines where the kernel refuses, is interrupted or has no room, and on file systems that are
 * not here. */
#include "engine.h"

#include <sys/mman.h>

#include "faults.h"
#include "s3dlio/buffer.h"

#define CHUNK ((size_t)4096)

/* That of ThreadSanitizer would look at each byte. */
ssize_t
pwrite(int fd, const void *data, size_t nbytes, off_t offset)
{
    return syscall(SYS_pwrite64, fd, data, nbytes, offset);
}

static struct fault fstatfs_fault;
/* What kind of file system all are, if not 0. */
static long fs_type;

int
fstatfs(int fd, struct statfs *fs)
{
    int status = fires(&fstatfs_fault) ? -1 : (int)syscall(SYS_fstatfs, fd, fs);

    if (fs_type)
        fs->f_type = fs_type;
    return status;
}

#ifdef S3DLIO_HAVE_URING
/* What a system call of the ring answers; as these calls do, it returns the code. */
struct io_uring;
struct io_uring_cqe;
struct __kernel_timespec;

FAULTY_RETURNING(-io_uring_submit_fault.error, int, io_uring_submit, (struct io_uring * ring),
                 (ring))
FAULTY_RETURNING(-io_uring_wait_cqe_timeout_fault.error, int, io_uring_wait_cqe_timeout,
                 (struct io_uring * ring, struct io_uring_cqe **entry,
                  struct __kernel_timespec *timeout),
                 (ring, entry, timeout))
#endif

static char folder[PATH_MAX];
static char path[PATH_MAX];
static int fd;

static struct s3dlio_engine *
open_engine(const char *name, unsigned depth, const struct s3dlio_pool *pool)
{
    struct s3dlio_engine *engine = NULL;

    force_engine(name);
    CHECK_EQ(s3dlio_engine_open(&engine, fd, depth, 1, pool), 0);
    return engine;
}

static struct s3dlio_io
make_io(enum s3dlio_io_kind kind, void *data, size_t nbytes, uint64_t offset)
{
    return (struct s3dlio_io){.kind = kind,
                              .data = data,
                              .nbytes = nbytes,
                              .offset = offset,
                              .needed = nbytes,
                              .block = -1};
}

/* Its name is static. */
static const char *
chosen_engine(void)
{
    struct s3dlio_engine *engine = open_engine(NULL, 1, NULL);
    const char *name = engine->ops->name;

    CHECK_EQ(s3dlio_engine_close(engine), 0);
    return name;
}

static void
file_systems_that_are_unknown_or_not_trusted_get_threads(void)
{
    static const long types[] = {0x65735546, 0xff534d42, 0xfe534d42, 0x6969};

    fail(&fstatfs_fault, EIO, 1);
    CHECK(strcmp(chosen_engine(), "threads") == 0);
    check_fired(&fstatfs_fault);
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
        fs_type = types[i];
        CHECK(strcmp(chosen_engine(), "threads") == 0);
        fs_type = (long)(int)types[i]; /* where the kernel's number is an int */
        CHECK(strcmp(chosen_engine(), "threads") == 0);
    }
    fs_type = 0xef53; /* ext4 */
    CHECK(strcmp(chosen_engine(), has_uring() ? "io_uring" : "threads") == 0);
    fs_type = 0;
}

static void
only_file_systems_that_are_known_to_be_local_are(void)
{
    static const long local[] = {0xef53,     0x58465342, 0x9123683e, 0x01021994,
                                 0x794c7630, 0xf2f52010, 0x2fc12fc1};
    static const long others[] = {0x65735546, 0xff534d42, 0x6969, 0x00c36400 /* Ceph */,
                                  0x01021997 /* 9p */};

    for (size_t i = 0; i < sizeof local / sizeof local[0]; i++) {
        fs_type = (long)(int)local[i];
        CHECK(s3dlio_is_local(fd));
    }
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++) {
        fs_type = others[i];
        CHECK(!s3dlio_is_local(fd));
    }
    fs_type = 0;
    fail(&fstatfs_fault, EIO, 1);
    CHECK(!s3dlio_is_local(fd));
    check_fired(&fstatfs_fault);
}

/* Linux moves no more than 2 GiB less a page at once, which is not aligned for every device. */
static void
large_transfer_goes_in_aligned_steps(void)
{
    const size_t nbytes = ((size_t)3 << 30) + 5;
    void *data = mmap(NULL, nbytes, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    int null = open("/dev/null", O_WRONLY | O_CLOEXEC);
    struct s3dlio_io io = make_io(S3DLIO_IO_WRITE, data, nbytes, 0);
    struct stat file;

    CHECK(data != MAP_FAILED && null >= 0);
    CHECK(fstat(null, &file) == 0 && S_ISCHR(file.st_mode)); /* else it would take the space */
    CHECK_EQ(s3dlio_io_step(&io, null), 1 << 30);
    CHECK_EQ(s3dlio_io_run(&io, null, 4096), 0);
    CHECK_EQ(io.done, nbytes);
    close(null);
    CHECK(munmap(data, nbytes) == 0);
}

#ifdef S3DLIO_HAVE_URING
/* The rest is for io_uring. */

static void
submit_writes(struct s3dlio_engine *engine, struct s3dlio_io *ios, unsigned n, unsigned char *data)
{
    for (unsigned i = 0; i < n; i++) {
        ios[i] = make_io(S3DLIO_IO_WRITE, data + i * CHUNK, CHUNK, i * CHUNK);
        CHECK_EQ(s3dlio_engine_submit(engine, &ios[i]), 0);
    }
    CHECK_EQ(engine->in_flight, n);
}

static void
collect(struct s3dlio_engine *engine, unsigned n)
{
    struct s3dlio_io *io;

    for (unsigned i = 0; i < n;) {
        int status = s3dlio_engine_wait(engine, &io, 100);

        CHECK(status >= 0);
        if (status == 0)
            continue;
        CHECK_EQ(io->error, 0);
        CHECK_EQ(io->done, io->nbytes);
        i++;
    }
    CHECK_EQ(engine->in_flight, 0);
}

static void
submission_that_is_put_off_is_made_up_for(void)
{
    static const int errors[] = {EINTR, EAGAIN, EBUSY};
    const unsigned n = 12; /* more than there are entries */
    unsigned char *data = make_data(n * CHUNK, 1);
    struct s3dlio_io ios[12];

    for (size_t i = 0; i < sizeof errors / sizeof errors[0]; i++) {
        struct s3dlio_engine *engine = open_engine("uring", 3, NULL);

        CHECK(ftruncate(fd, 0) == 0);
        fail(&io_uring_submit_fault, errors[i], 1000);
        submit_writes(engine, ios, n, data);
        check_fired(&io_uring_submit_fault);
        collect(engine, n);
        CHECK_EQ(s3dlio_engine_close(engine), 0);
        CHECK(holds(path, data, n * CHUNK));
    }
    free(data);
}

static void
close_drops_what_the_kernel_never_got(void)
{
    const unsigned n = 12;
    unsigned char *data = make_data(n * CHUNK, 2);
    struct s3dlio_engine *engine = open_engine("uring", 3, NULL);
    struct s3dlio_io ios[12];

    CHECK(ftruncate(fd, 0) == 0);
    fail(&io_uring_submit_fault, EAGAIN, 1000);
    submit_writes(engine, ios, n, data);
    check_fired(&io_uring_submit_fault);
    CHECK_EQ(s3dlio_engine_close(engine), 0);
    free(data);
    CHECK(holds(path, "", 0));
}

static void
broken_ring_is_a_failure_of_the_wait(void)
{
    unsigned char *data = make_data(CHUNK, 3);
    struct s3dlio_engine *engine = open_engine("uring", 1, NULL);
    struct s3dlio_io io, *back;

    CHECK(ftruncate(fd, 0) == 0);
    fail(&io_uring_submit_fault, EIO, 1000);
    submit_writes(engine, &io, 1, data);
    CHECK_EQ(s3dlio_engine_wait(engine, &back, 100), -EIO);
    CHECK_EQ(engine->in_flight, 1);
    CHECK_EQ(s3dlio_engine_close(engine), 0);
    check_fired(&io_uring_submit_fault);
    CHECK(holds(path, "", 0));
    free(data);
}

/* An empty pipe keeps a read waiting. */
static void
wait_that_is_interrupted_returns_and_one_that_fails_says_so(void)
{
    static const struct {
        int error, status;
    } cases[] = {{ETIME, 0}, {EINTR, 0}, {EAGAIN, 0}, {EIO, -EIO}};
    struct s3dlio_engine *engine = NULL;
    struct s3dlio_io io, *back;
    char data[4] = "";
    int pipe_fds[2];

    CHECK(pipe2(pipe_fds, O_CLOEXEC) == 0);
    force_engine("uring");
    CHECK_EQ(s3dlio_engine_open(&engine, pipe_fds[0], 1, 1, NULL), 0);
    io = make_io(S3DLIO_IO_READ, data, 4, (uint64_t)-1);
    CHECK_EQ(s3dlio_engine_submit(engine, &io), 0);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        fail(&io_uring_wait_cqe_timeout_fault, cases[i].error, 1);
        CHECK_EQ(s3dlio_engine_wait(engine, &back, 1000), cases[i].status);
        check_fired(&io_uring_wait_cqe_timeout_fault);
    }
    CHECK_EQ(write(pipe_fds[1], "abcd", 4), 4);
    collect(engine, 1);
    CHECK(memcmp(data, "abcd", 4) == 0);
    CHECK_EQ(s3dlio_engine_close(engine), 0);
    close(pipe_fds[0]);
    close(pipe_fds[1]);
}

static void
registered_blocks_are_read_into_and_memory_beside_them_too(void)
{
    unsigned char *data = make_data(2 * CHUNK, 4);
    unsigned char other[CHUNK];
    struct s3dlio_pool *pool;
    struct s3dlio_engine *engine;
    struct s3dlio_io ios[2];
    void *block;

    put_file(path, data, 2 * CHUNK);
    CHECK_EQ(s3dlio_pool_new(&pool, CHUNK, 1), 0);
    CHECK_EQ(s3dlio_pool_take(pool, &block, 0), 0);
    engine = open_engine("uring", 2, pool);
    ios[0] = make_io(S3DLIO_IO_READ, block, CHUNK, 0);
    ios[0].block = 0;
    ios[1] = make_io(S3DLIO_IO_READ, other, CHUNK, CHUNK);
    for (int i = 0; i < 2; i++)
        CHECK_EQ(s3dlio_engine_submit(engine, &ios[i]), 0);
    collect(engine, 2);
    CHECK(engine->registered);
    CHECK(memcmp(block, data, CHUNK) == 0);
    CHECK(memcmp(other, data + CHUNK, CHUNK) == 0);
    CHECK_EQ(s3dlio_engine_close(engine), 0);
    s3dlio_pool_free(pool);
    free(data);
}

/* Registering would pin all of its memory. */
static void
large_pool_is_not_registered(void)
{
    struct s3dlio_pool *pool;
    struct s3dlio_engine *engine;

    CHECK_EQ(s3dlio_pool_new(&pool, MIB, 257), 0);
    engine = open_engine("uring", 2, pool);
    CHECK(!engine->registered);
    CHECK_EQ(s3dlio_engine_close(engine), 0);
    s3dlio_pool_free(pool);
}
#endif

int
main(void)
{
    deadline(120);
    make_folder(folder, NULL);
    fd = open(join(path, folder, "file"), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    CHECK(fd >= 0);

    file_systems_that_are_unknown_or_not_trusted_get_threads();
    only_file_systems_that_are_known_to_be_local_are();
    large_transfer_goes_in_aligned_steps();
#ifdef S3DLIO_HAVE_URING
    if (has_uring()) {
        submission_that_is_put_off_is_made_up_for();
        close_drops_what_the_kernel_never_got();
        broken_ring_is_a_failure_of_the_wait();
        wait_that_is_interrupted_returns_and_one_that_fails_says_so();
        registered_blocks_are_read_into_and_memory_beside_them_too();
        large_pool_is_not_registered();
    }
#endif
    close(fd);
    remove_folder(folder);
    return 0;
}
