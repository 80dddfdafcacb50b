/* The engines: what was asked of the kernel is done, or reported, and comes back once. */
#include "engine.h"

#include <pthread.h>
#include <stdatomic.h>
#include <sys/resource.h>

#include "s3dlio/buffer.h"
#include "s3dlio/status.h"
#include "support.h"

#define CHUNK ((size_t)4096)

static char folder[PATH_MAX];
static char path[PATH_MAX];

/* The names in the environment of the engines that work here. */
static const char *engines[2];
static int nengines;

/* This definition takes the place of the C library's in this program. */

static atomic_int slow_ms;
static atomic_uint nfsync;

ssize_t
pwrite(int fd, const void *data, size_t nbytes, off_t offset)
{
    if (slow_ms)
        sleep_ms(slow_ms);
    return syscall(SYS_pwrite64, fd, data, nbytes, offset);
}

int
fsync(int fd)
{
    (void)fd;
    nfsync++;
    errno = EIO;
    return -1;
}

static struct s3dlio_engine *
open_engine(const char *name, int fd, unsigned depth, const struct s3dlio_pool *pool)
{
    struct s3dlio_engine *engine = NULL;

    force_engine(name);
    CHECK_EQ(s3dlio_engine_open(&engine, fd, depth, 1, pool), 0);
    force_engine(NULL);
    if (name)
        CHECK(strcmp(engine->ops->name, strcmp(name, "uring") == 0 ? "io_uring" : "threads") == 0);
    return engine;
}

static int
open_file(int flags)
{
    int fd = open(path, flags | O_CLOEXEC, 0666);

    CHECK(fd >= 0);
    return fd;
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

/* Waits for all that is in flight; each must be in 'ios' and come back once. */
static void
collect(struct s3dlio_engine *engine, struct s3dlio_io *ios, unsigned nios)
{
    bool back[64] = {false};

    CHECK(nios <= 64);
    for (unsigned i = 0; i < nios; i++) {
        struct s3dlio_io *io = NULL;
        int status;

        while ((status = s3dlio_engine_wait(engine, &io, 1000)) == 0)
            ;
        CHECK_EQ(status, 1);
        CHECK(io >= ios && io < ios + nios && !back[io - ios]);
        back[io - ios] = true;
    }
    CHECK_EQ(engine->in_flight, 0);
}

static void
what_is_written_is_read_back(void)
{
    const unsigned nios = 40;
    unsigned char *data = make_data(nios * CHUNK, 1);
    unsigned char *again = calloc(nios, CHUNK);

    for (int e = 0; e < nengines; e++) {
        struct s3dlio_io ios[40];
        int fd = open_file(O_RDWR | O_CREAT | O_TRUNC);
        struct s3dlio_engine *engine = open_engine(engines[e], fd, nios, NULL);

        memset(again, 0, nios * CHUNK);
        for (int pass = 0; pass < 2; pass++) {
            for (unsigned i = 0; i < nios; i++) {
                ios[i] = make_io(pass ? S3DLIO_IO_READ : S3DLIO_IO_WRITE,
                                 (pass ? again : data) + i * CHUNK, CHUNK, i * CHUNK);
                CHECK_EQ(s3dlio_engine_submit(engine, &ios[i]), 0);
            }
            CHECK_EQ(engine->in_flight, nios);
            collect(engine, ios, nios);
            for (unsigned i = 0; i < nios; i++) {
                CHECK_EQ(ios[i].error, 0);
                CHECK_EQ(ios[i].done, CHUNK);
            }
            ios[0] = make_io(S3DLIO_IO_FDATASYNC, NULL, 0, 0);
            CHECK_EQ(s3dlio_engine_submit(engine, &ios[0]), 0);
            collect(engine, ios, 1);
            CHECK_EQ(ios[0].error, 0);
        }
        CHECK(memcmp(data, again, nios * CHUNK) == 0);
        CHECK_EQ(s3dlio_engine_close(engine), 0);
        close(fd);
        CHECK(holds(path, data, nios * CHUNK));
    }
    free(data);
    free(again);
}

static void
blocks_of_a_pool_are_written_by_their_number(void)
{
    for (int e = 0; e < nengines; e++) {
        struct s3dlio_pool *pool = NULL;
        struct s3dlio_io ios[4];
        unsigned char *data = make_data(4 * CHUNK, 2);
        int fd = open_file(O_RDWR | O_CREAT | O_TRUNC);
        struct s3dlio_engine *engine;

        CHECK_EQ(s3dlio_pool_new(&pool, CHUNK, 4), 0);
        engine = open_engine(engines[e], fd, 4, pool);
        for (unsigned i = 0; i < 4; i++) {
            void *block;

            CHECK_EQ(s3dlio_pool_take(pool, &block, 0), 0);
            memcpy(block, data + i * CHUNK, CHUNK);
            ios[i] = make_io(S3DLIO_IO_WRITE, block, CHUNK, i * CHUNK);
            ios[i].block = (int)i; /* they are given in the order of their numbers */
            CHECK_EQ(s3dlio_engine_submit(engine, &ios[i]), 0);
        }
        collect(engine, ios, 4);
        for (unsigned i = 0; i < 4; i++)
            CHECK_EQ(ios[i].error, 0);
        CHECK_EQ(s3dlio_engine_close(engine), 0);
        s3dlio_pool_free(pool);
        close(fd);
        CHECK(holds(path, data, 4 * CHUNK));
        free(data);
    }
}

static void
read_at_the_end_of_the_file_is_short_and_no_error(void)
{
    for (int e = 0; e < nengines; e++) {
        unsigned char data[CHUNK];
        struct s3dlio_engine *engine;
        struct s3dlio_io io;
        int fd;

        put_file(path, "0123456789", 10);
        fd = open_file(O_RDONLY);
        engine = open_engine(engines[e], fd, 1, NULL);
        io = make_io(S3DLIO_IO_READ, data, CHUNK, 4);
        CHECK_EQ(s3dlio_engine_submit(engine, &io), 0);
        collect(engine, &io, 1);
        CHECK_EQ(io.error, 0);
        CHECK_EQ(io.done, 6);
        CHECK(memcmp(data, "456789", 6) == 0);
        io = make_io(S3DLIO_IO_READ, data, CHUNK, 10);
        CHECK_EQ(s3dlio_engine_submit(engine, &io), 0);
        collect(engine, &io, 1);
        CHECK_EQ(io.error, 0);
        CHECK_EQ(io.done, 0);
        CHECK_EQ(s3dlio_engine_close(engine), 0);
        close(fd);
    }
}

static void
failures_come_back_with_the_transfer(void)
{
    for (int e = 0; e < nengines; e++) {
        unsigned char *data = make_data(4 * CHUNK, 3);
        struct s3dlio_engine *engine;
        struct s3dlio_io ios[4];
        int fd;

        put_file(path, "0123456789", 10);
        fd = open_file(O_RDONLY);
        engine = open_engine(engines[e], fd, 4, NULL);
        for (unsigned i = 0; i < 4; i++) {
            ios[i] = make_io(S3DLIO_IO_WRITE, data + i * CHUNK, CHUNK, i * CHUNK);
            CHECK_EQ(s3dlio_engine_submit(engine, &ios[i]), 0);
        }
        collect(engine, ios, 4);
        for (unsigned i = 0; i < 4; i++) {
            CHECK_EQ(ios[i].error, -EBADF);
            CHECK_EQ(ios[i].done, 0);
        }
        /* The engine goes on after that. */
        ios[0] = make_io(S3DLIO_IO_READ, data, 10, 0);
        CHECK_EQ(s3dlio_engine_submit(engine, &ios[0]), 0);
        collect(engine, ios, 1);
        CHECK_EQ(ios[0].error, 0);
        /* An address that is not there. */
        ios[0] = make_io(S3DLIO_IO_READ, (void *)(uintptr_t)8, 10, 0);
        CHECK_EQ(s3dlio_engine_submit(engine, &ios[0]), 0);
        collect(engine, ios, 1);
        CHECK_EQ(ios[0].error, -EFAULT);
        CHECK_EQ(s3dlio_engine_close(engine), 0);
        close(fd);
        CHECK(holds(path, "0123456789", 10));
        free(data);
    }
}

static void
failed_fsync_comes_back_after_one_try(void)
{
    struct s3dlio_io io = make_io(S3DLIO_IO_FSYNC, NULL, 0, 0);
    int fd = open_file(O_RDWR | O_CREAT | O_TRUNC);
    struct s3dlio_engine *engine = open_engine("threads", fd, 1, NULL);

    nfsync = 0;
    CHECK_EQ(s3dlio_engine_submit(engine, &io), 0);
    collect(engine, &io, 1);
    CHECK_EQ(io.error, -EIO);
    CHECK_EQ(s3dlio_engine_close(engine), 0);
    CHECK_EQ(s3dlio_io_run(&io, fd, 1), -EIO);
    CHECK_EQ(nfsync, 2);
    close(fd);
}

/* A pipe, which stays empty, keeps a read waiting as long as a test needs. */

static void
wait_gives_up_in_time(void)
{
    for (int e = 0; e < nengines; e++) {
        int fds[2];
        struct s3dlio_engine *engine;
        struct s3dlio_io io, *back = NULL;
        char data[4];
        uint64_t begin;

        CHECK(pipe2(fds, O_CLOEXEC) == 0);
        engine = open_engine(engines[e], fds[0], 1, NULL);
        CHECK_EQ(s3dlio_engine_wait(engine, &back, 0), 0);
        begin = now_ms();
        CHECK_EQ(s3dlio_engine_wait(engine, &back, 30), 0);
        CHECK(now_ms() - begin >= 29);
        if (strcmp(engines[e], "uring") == 0) { /* pread() does not wait for a pipe, but refuses */
            io = make_io(S3DLIO_IO_READ, data, 4, (uint64_t)-1);
            CHECK_EQ(s3dlio_engine_submit(engine, &io), 0);
            CHECK_EQ(s3dlio_engine_wait(engine, &back, 0), 0);
            CHECK_EQ(s3dlio_engine_wait(engine, &back, 30), 0);
            CHECK_EQ(write(fds[1], "abcd", 4), 4);
            collect(engine, &io, 1);
            CHECK_EQ(io.error, 0);
            CHECK(memcmp(data, "abcd", 4) == 0);
        }
        CHECK_EQ(s3dlio_engine_close(engine), 0);
        close(fds[0]);
        close(fds[1]);
    }
}

static void
close_waits_for_what_is_on_its_way(void)
{
    const unsigned nios = 16;
    unsigned char *data = make_data(nios * MIB, 4);

    for (int e = 0; e < nengines; e++) {
        struct s3dlio_io ios[16];
        int fd = open_file(O_RDWR | O_CREAT | O_TRUNC);
        struct s3dlio_engine *engine = open_engine(engines[e], fd, nios, NULL);
        unsigned char *scratch = malloc(nios * MIB);

        CHECK(scratch);
        memcpy(scratch, data, nios * MIB);
        slow_ms = 20; /* for the threads */
        for (unsigned i = 0; i < nios; i++) {
            ios[i] = make_io(S3DLIO_IO_WRITE, scratch + i * MIB, MIB, i * MIB);
            CHECK_EQ(s3dlio_engine_submit(engine, &ios[i]), 0);
        }
        if (strcmp(engines[e], "threads") == 0)
            sleep_ms(5); /* so that each of them has one */
        CHECK_EQ(s3dlio_engine_close(engine), 0);
        slow_ms = 0;
        /* Nothing reads the memory any more: each piece is all there or was never begun. */
        memset(scratch, 0, nios * MIB);
        free(scratch);
        sleep_ms(30);
        for (unsigned i = 0; i < nios; i++) {
            unsigned char first = 0;
            unsigned char *piece = malloc(MIB);
            ssize_t n;

            CHECK(piece);
            n = pread(fd, piece, MIB, (off_t)(i * MIB));
            CHECK(n == 0 || n == (ssize_t)MIB);
            for (size_t k = 0; k < (size_t)n && !first; k++)
                first = piece[k];
            CHECK(!first || memcmp(piece, data + i * MIB, MIB) == 0);
            free(piece);
        }
        close(fd);
    }
    free(data);
}

static void *
feed_pipe(void *argument)
{
    sleep_ms(100);
    CHECK_EQ(write(*(const int *)argument, "abcd", 4), 4);
    return NULL;
}

/* The memory may be freed after the close, so that no read may still end in it. */
static void
close_waits_for_a_read_that_is_kept_waiting(void)
{
    struct s3dlio_engine *engine;
    struct s3dlio_io io;
    char data[4] = "";
    uint64_t begin = now_ms();
    pthread_t thread;
    int fds[2];

    if (!has_uring())
        return;
    CHECK(pipe2(fds, O_CLOEXEC) == 0);
    engine = open_engine("uring", fds[0], 1, NULL);
    io = make_io(S3DLIO_IO_READ, data, 4, (uint64_t)-1);
    CHECK_EQ(s3dlio_engine_submit(engine, &io), 0);
    CHECK(pthread_create(&thread, NULL, feed_pipe, &fds[1]) == 0);
    CHECK_EQ(s3dlio_engine_close(engine), 0);
    CHECK(now_ms() - begin >= 99);
    CHECK(memcmp(data, "abcd", 4) == 0);
    CHECK(pthread_join(thread, NULL) == 0);
    close(fds[0]);
    close(fds[1]);
}

static void
close_drops_what_was_not_sent(void)
{
    const unsigned nios = 60;
    unsigned char *data = make_data(CHUNK, 5);
    struct s3dlio_io ios[60];
    int fd = open_file(O_RDWR | O_CREAT | O_TRUNC);
    struct s3dlio_engine *engine = open_engine("threads", fd, nios, NULL);
    struct stat file;
    uint64_t begin;

    slow_ms = 100;
    for (unsigned i = 0; i < nios; i++) {
        ios[i] = make_io(S3DLIO_IO_WRITE, data, CHUNK, i * CHUNK);
        CHECK_EQ(s3dlio_engine_submit(engine, &ios[i]), 0);
    }
    sleep_ms(20);
    begin = now_ms();
    CHECK_EQ(s3dlio_engine_close(engine), 0);
    CHECK(now_ms() - begin < 400);
    slow_ms = 0;
    CHECK(fstat(fd, &file) == 0);
    CHECK(file.st_size > 0 && file.st_size < (off_t)(nios * CHUNK));
    close(fd);
    free(data);
    CHECK_EQ(s3dlio_engine_close(NULL), 0);
    s3dlio_engine_forget(NULL);
}

static void
environment_forces_an_engine_or_is_refused(void)
{
    static const char *const bad[] = {"aio", "URING", "uring ", "thread", "0"};
    struct s3dlio_engine *engine = NULL;
    int fd = open_file(O_RDWR | O_CREAT);
    bool forced = true;

    for (unsigned i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        force_engine(bad[i]);
        CHECK_EQ(s3dlio_engine_open(&engine, fd, 1, 1, NULL), S3DLIO_E_BAD_ENGINE);
        CHECK_EQ(s3dlio_engine_forced(&forced), S3DLIO_E_BAD_ENGINE);
        CHECK(!engine);
    }
    force_engine("");
    CHECK_EQ(s3dlio_engine_forced(&forced), 0);
    CHECK(!forced);
    force_engine("threads");
    CHECK_EQ(s3dlio_engine_forced(&forced), 0);
    CHECK(forced);
    force_engine(NULL);
    CHECK_EQ(s3dlio_engine_forced(&forced), 0);
    CHECK(!forced);
    engine = open_engine(NULL, fd, 1, NULL);
    CHECK(strcmp(engine->ops->name, has_uring() ? "io_uring" : "threads") == 0);
    CHECK_EQ(s3dlio_engine_close(engine), 0);
    close(fd);
}

static void
open_with_io_uring_forbidden(void *argument)
{
    int error = *(const int *)argument;
    struct s3dlio_engine *engine = NULL;
    struct s3dlio_io io;
    int nfds = count_fds();
    int fd = open_file(O_RDWR | O_CREAT | O_TRUNC);

    forbid_calls(425, 427, (unsigned)error);
    CHECK(!has_uring());
    engine = open_engine(NULL, fd, 4, NULL);
    CHECK(strcmp(engine->ops->name, "threads") == 0);
    io = make_io(S3DLIO_IO_WRITE, "text", 4, 0);
    CHECK_EQ(s3dlio_engine_submit(engine, &io), 0);
    collect(engine, &io, 1);
    CHECK_EQ(io.error, 0);
    CHECK_EQ(s3dlio_engine_close(engine), 0);
    force_engine("uring");
    CHECK_EQ(s3dlio_engine_open(&engine, fd, 4, 1, NULL), -error);
    close(fd);
    CHECK_EQ(count_fds(), nfds);
    CHECK(holds(path, "text", 4));
}

static void
forbidden_io_uring_falls_back_to_threads(void)
{
    int errors[] = {EPERM, ENOSYS};

    for (int i = 0; i < 2 && has_uring(); i++)
        in_child(open_with_io_uring_forbidden, &errors[i]);
}

static void
open_without_locked_memory(void *argument)
{
    struct rlimit none = {64 * KIB, 64 * KIB};
    struct s3dlio_pool *pool = NULL;
    struct s3dlio_engine *engine = NULL;
    struct s3dlio_io io;
    void *block;
    int fd = *(const int *)argument;

    CHECK(setrlimit(RLIMIT_MEMLOCK, &none) == 0);
    CHECK(setgid(65534) == 0 && setuid(65534) == 0);
    CHECK_EQ(s3dlio_pool_new(&pool, 4 * MIB, 4), 0);
    force_engine("uring");
    if (s3dlio_engine_open(&engine, fd, 4, 1, pool) != 0)
        _exit(77);
    CHECK_EQ(s3dlio_pool_take(pool, &block, 0), 0);
    memset(block, 'x', 4 * MIB);
    io = make_io(S3DLIO_IO_WRITE, block, 4 * MIB, 0);
    io.block = 0;
    CHECK_EQ(s3dlio_engine_submit(engine, &io), 0);
    collect(engine, &io, 1);
    CHECK_EQ(io.error, 0);
    CHECK(!engine->registered);
    CHECK_EQ(s3dlio_engine_close(engine), 0);
    s3dlio_pool_free(pool);
}

static void
blocks_that_may_not_be_locked_are_used_unregistered(void)
{
    int fd, status;
    struct stat file;

    if (geteuid() != 0 || !has_uring())
        return;
    fd = open_file(O_RDWR | O_CREAT | O_TRUNC);
    status = wait_for(start_child(open_without_locked_memory, &fd));
    CHECK(status == 0 || status == 77);
    if (status)
        printf("SKIPPED in part: no io_uring under RLIMIT_MEMLOCK\n");
    else
        CHECK(fstat(fd, &file) == 0 && file.st_size == (off_t)(4 * MIB));
    close(fd);
}

/* What a child of fork() does to an engine must not reach the parent's. */

static void
forget_engine(void *argument)
{
    s3dlio_engine_forget(argument);
}

static void
child_that_forgets_leaves_the_engine_well(void)
{
    for (int e = 0; e < nengines; e++) {
        int fd = open_file(O_RDWR | O_CREAT | O_TRUNC);
        struct s3dlio_engine *engine = open_engine(engines[e], fd, 2, NULL);
        struct s3dlio_io ios[2];

        ios[0] = make_io(S3DLIO_IO_WRITE, "0123", 4, 0);
        ios[1] = make_io(S3DLIO_IO_WRITE, "4567", 4, 4);
        CHECK_EQ(s3dlio_engine_submit(engine, &ios[0]), 0);
        in_child(forget_engine, engine);
        CHECK_EQ(s3dlio_engine_submit(engine, &ios[1]), 0);
        collect(engine, ios, 2);
        CHECK_EQ(s3dlio_engine_close(engine), 0);
        close(fd);
        CHECK(holds(path, "01234567", 8));
    }
}

static void
engine_that_cannot_start_a_thread_says_so(void *argument)
{
    struct rlimit none = {0, 0};
    struct s3dlio_io io = make_io(S3DLIO_IO_WRITE, "text", 4, 0);
    int fd = *(const int *)argument;
    struct s3dlio_engine *engine = open_engine("threads", fd, 2, NULL);

    CHECK(setrlimit(RLIMIT_NPROC, &none) == 0);
    CHECK(setgid(65534) == 0 && setuid(65534) == 0);
    CHECK_EQ(s3dlio_engine_submit(engine, &io), -EAGAIN);
    CHECK_EQ(engine->in_flight, 0);
    CHECK_EQ(s3dlio_engine_close(engine), 0);
}

static void
failed_submit_leaves_the_transfer_with_the_caller(void)
{
    int fd;

    if (geteuid() != 0)
        return;
    fd = open_file(O_RDWR | O_CREAT | O_TRUNC);
    in_child(engine_that_cannot_start_a_thread_says_so, &fd);
    close(fd);
}

/* s3dlio_io_advance(): what each answer of the kernel means. */

static struct s3dlio_io
io_of(enum s3dlio_io_kind kind, size_t nbytes, size_t done)
{
    struct s3dlio_io io = make_io(kind, NULL, nbytes, 0);

    io.done = done;
    return io;
}

static void
advance_counts_short_answers(void)
{
    for (int kind = S3DLIO_IO_READ; kind <= S3DLIO_IO_WRITE; kind++) {
        struct s3dlio_io io = io_of((enum s3dlio_io_kind)kind, 10000, 0);

        CHECK(!s3dlio_io_advance(&io, 1, 1));
        CHECK_EQ(io.done, 1);
        CHECK(!s3dlio_io_advance(&io, 9998, 1));
        CHECK_EQ(io.done, 9999);
        CHECK(s3dlio_io_advance(&io, 1, 1));
        CHECK_EQ(io.done, 10000);
        CHECK_EQ(io.error, 0);
    }
}

static void
advance_goes_on_from_aligned_places(void)
{
    struct s3dlio_io io = io_of(S3DLIO_IO_WRITE, 16384, 0);

    CHECK(!s3dlio_io_advance(&io, 5000, 4096));
    CHECK_EQ(io.done, 4096);
    CHECK(!s3dlio_io_advance(&io, 4096, 4096));
    CHECK_EQ(io.done, 8192);
    CHECK(!s3dlio_io_advance(&io, 4095, 4096));
    CHECK_EQ(io.done, 8192);
    CHECK(s3dlio_io_advance(&io, 8192, 4096));
    CHECK_EQ(io.done, 16384);

    /* A padded read is done when what is needed is there. */
    io = io_of(S3DLIO_IO_READ, 8192, 0);
    io.needed = 5000;
    CHECK(!s3dlio_io_advance(&io, 4999, 4096));
    CHECK_EQ(io.done, 4096);
    CHECK(s3dlio_io_advance(&io, 904, 4096));
    CHECK_EQ(io.done, 5000);
}

static void
advance_tries_interruptions_again_but_not_for_ever(void)
{
    static const int errors[] = {-EINTR, -EAGAIN};

    for (int i = 0; i < 2; i++) {
        struct s3dlio_io io = io_of(S3DLIO_IO_WRITE, 100, 0);
        int n = 0;

        for (int k = 0; k < 50; k++)
            CHECK(!s3dlio_io_advance(&io, errors[i], 1));
        CHECK(!s3dlio_io_advance(&io, 10, 1));
        while (!s3dlio_io_advance(&io, errors[i], 1) && n < 1000)
            n++;
        CHECK(n >= 50 && n < 1000); /* the limit counts from the last progress */
        CHECK_EQ(io.error, errors[i]);
        CHECK_EQ(io.done, 10);
    }
}

static void
advance_ends_with_answers_of_nothing(void)
{
    struct s3dlio_io io = io_of(S3DLIO_IO_READ, 100, 40);
    int n = 0;

    CHECK(s3dlio_io_advance(&io, 0, 1)); /* the end of the file */
    CHECK_EQ(io.error, 0);
    CHECK_EQ(io.done, 40);

    io = io_of(S3DLIO_IO_WRITE, 100, 40);
    while (!s3dlio_io_advance(&io, 0, 1) && n < 1000)
        n++;
    CHECK(n > 0 && n < 1000);
    CHECK_EQ(io.error, -EIO);

    io = io_of(S3DLIO_IO_WRITE, 0, 0);
    CHECK(s3dlio_io_advance(&io, 0, 1));
    CHECK_EQ(io.error, 0);

    /* O_DIRECT meets an end between aligned places again and again. */
    io = io_of(S3DLIO_IO_READ, 8192, 4096);
    for (n = 0; !s3dlio_io_advance(&io, 100, 4096) && n < 1000;)
        n++;
    CHECK(n < 1000);
    CHECK_EQ(io.error, 0);
    CHECK(io.done < io.needed);
}

static void
advance_reports_failures_and_never_repeats_a_sync(void)
{
    static const int errors[] = {-EIO, -EINTR, -EAGAIN, -ENOSPC};
    struct s3dlio_io io = io_of(S3DLIO_IO_WRITE, 100, 40);

    CHECK(s3dlio_io_advance(&io, -ENOSPC, 1));
    CHECK_EQ(io.error, -ENOSPC);
    CHECK_EQ(io.done, 40);
    for (int kind = S3DLIO_IO_FSYNC; kind <= S3DLIO_IO_FDATASYNC; kind++) {
        for (unsigned i = 0; i < sizeof errors / sizeof errors[0]; i++) {
            io = io_of((enum s3dlio_io_kind)kind, 0, 0);
            CHECK(s3dlio_io_advance(&io, errors[i], 1));
            CHECK_EQ(io.error, errors[i]);
        }
        io = io_of((enum s3dlio_io_kind)kind, 0, 0);
        CHECK(s3dlio_io_advance(&io, 0, 1));
        CHECK_EQ(io.error, 0);
    }
}

static void
run_does_a_transfer_at_once(void)
{
    int fd = open_file(O_RDWR | O_CREAT | O_TRUNC);
    struct s3dlio_io io = make_io(S3DLIO_IO_WRITE, "0123456789", 10, 3);
    char data[20];

    CHECK_EQ(s3dlio_io_run(&io, fd, 1), 0);
    CHECK_EQ(io.done, 10);
    io = make_io(S3DLIO_IO_READ, data, sizeof data, 5);
    CHECK_EQ(s3dlio_io_run(&io, fd, 1), 0);
    CHECK_EQ(io.done, 8);
    CHECK(memcmp(data, "23456789", 8) == 0);
    close(fd);
    CHECK_EQ(s3dlio_io_run(&io, fd, 1), -EBADF);
}

int
main(void)
{
    int nfds;

    deadline(120);
    force_engine(NULL);
    make_folder(folder, NULL);
    join(path, folder, "file");
    if (has_uring())
        engines[nengines++] = "uring";
    else
        printf("SKIPPED in part: no io_uring here\n");
    engines[nengines++] = "threads";
    nfds = count_fds();

    what_is_written_is_read_back();
    blocks_of_a_pool_are_written_by_their_number();
    read_at_the_end_of_the_file_is_short_and_no_error();
    failures_come_back_with_the_transfer();
    failed_fsync_comes_back_after_one_try();
    wait_gives_up_in_time();
    close_waits_for_what_is_on_its_way();
    close_waits_for_a_read_that_is_kept_waiting();
    close_drops_what_was_not_sent();
    environment_forces_an_engine_or_is_refused();
    forbidden_io_uring_falls_back_to_threads();
    blocks_that_may_not_be_locked_are_used_unregistered();
    child_that_forgets_leaves_the_engine_well();
    failed_submit_leaves_the_transfer_with_the_caller();
    advance_counts_short_answers();
    advance_goes_on_from_aligned_places();
    advance_tries_interruptions_again_but_not_for_ever();
    advance_ends_with_answers_of_nothing();
    advance_reports_failures_and_never_repeats_a_sync();
    run_does_a_transfer_at_once();

    CHECK_EQ(count_fds(), nfds);
    remove_folder(folder);
    return 0;
}
