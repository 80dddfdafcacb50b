/*
 * The yardstick for the direct writer: a file from 8 MiB chunks with nothing but what the kernel
 * needs.  io_uring, eight registered blocks of 4 MiB in huge pages, O_DIRECT, the whole space
 * reserved ahead, one copy of the data, fdatasync.  No checksum, no error that is not fatal.
 *
 * A worker of race.py: reads lines ["path", nbytes] and answers {"seconds": s, "cpu": s}.
 * 'nbytes' must be a multiple of 4096.
 */
#define _GNU_SOURCE

#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#define MIB       ((size_t)1 << 20)
#define CHUNK     (8 * MIB)
#define BLOCK     (4 * MIB)
#define DEPTH     8
#define HUGE_PAGE (2 * MIB)

static char *chunk;

static void
check(long status, const char *what)
{
    if (status < 0) {
        fprintf(stderr, "bare_uring: %s: %s\n", what,
                strerror(status == -1 ? errno : (int)-status));
        exit(1);
    }
}

static void
open_ring(struct io_uring *ring, int fd, char *blocks)
{
    struct iovec iovecs[DEPTH];
    int status = -EINVAL;

#ifdef IORING_SETUP_DEFER_TASKRUN /* Linux 6.1 */
    status =
        io_uring_queue_init(DEPTH, ring, IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN);
#endif
    if (status == -EINVAL)
        status = io_uring_queue_init(DEPTH, ring, 0);
    check(status, "io_uring_queue_init");
    for (int i = 0; i < DEPTH; i++)
        iovecs[i] = (struct iovec){blocks + i * BLOCK, BLOCK};
    check(io_uring_register_buffers(ring, iovecs, DEPTH), "io_uring_register_buffers");
    check(io_uring_register_files(ring, &fd, 1), "io_uring_register_files");
}

/* Waits for one transfer and returns the block that it used. */
static unsigned
reap(struct io_uring *ring)
{
    struct io_uring_cqe *cqe;
    uint64_t data;

    check(io_uring_wait_cqe(ring, &cqe), "io_uring_wait_cqe");
    data = io_uring_cqe_get_data64(cqe);
    check(cqe->res, "write");
    if ((size_t)cqe->res != data >> 8) {
        fprintf(stderr, "bare_uring: short write\n");
        exit(1);
    }
    io_uring_cqe_seen(ring, cqe);
    return data & 0xff;
}

static void
write_file(const char *path, size_t nbytes)
{
    size_t map_nbytes = DEPTH * BLOCK + HUGE_PAGE;
    unsigned started = 0, in_flight = 0;
    struct io_uring ring;
    char *map, *blocks;
    int fd;

    fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_DIRECT | O_CLOEXEC, 0666);
    check(fd, "open");
    check(fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, (off_t)nbytes), "fallocate");
    map = mmap(NULL, map_nbytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    check(map == MAP_FAILED ? -1 : 0, "mmap");
    blocks = (char *)(((uintptr_t)map + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE);
    check(madvise(blocks, DEPTH * BLOCK, MADV_HUGEPAGE), "madvise");
    open_ring(&ring, fd, blocks);

    for (size_t offset = 0; offset < nbytes; offset += BLOCK) {
        size_t length = nbytes - offset < BLOCK ? nbytes - offset : BLOCK;
        unsigned block = started < DEPTH ? started++ : (in_flight--, reap(&ring));
        struct io_uring_sqe *sqe;

        memcpy(blocks + block * BLOCK, chunk + offset % CHUNK, length);
        sqe = io_uring_get_sqe(&ring);
        io_uring_prep_write_fixed(sqe, 0, blocks + block * BLOCK, (unsigned)length, offset,
                                  (int)block);
        sqe->flags |= IOSQE_FIXED_FILE;
        io_uring_sqe_set_data64(sqe, (uint64_t)length << 8 | block);
        check(io_uring_submit(&ring), "io_uring_submit");
        in_flight++;
    }
    for (; in_flight > 0; in_flight--)
        reap(&ring);
    check(fdatasync(fd), "fdatasync");
    io_uring_queue_exit(&ring);
    munmap(map, map_nbytes);
    check(close(fd), "close");
}

static double
now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static double
cpu(void)
{
    struct rusage usage;

    getrusage(RUSAGE_SELF, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

int
main(void)
{
    char line[8192], path[4096];
    size_t nbytes;

    /* As a Python bytes object of this size: fresh pages from malloc(), filled once. */
    chunk = malloc(CHUNK);
    if (!chunk)
        return 1;
    for (size_t done = 0; done < CHUNK;) {
        ssize_t count = getrandom(chunk + done, CHUNK - done, 0);

        check(count, "getrandom");
        done += (size_t)count;
    }
    while (fgets(line, sizeof line, stdin)) {
        double began, cpu_began;

        if (sscanf(line, "[\"%4095[^\"]\", %zu]", path, &nbytes) != 2) {
            fprintf(stderr, "bare_uring: not understood: %s", line);
            return 1;
        }
        cpu_began = cpu();
        began = now();
        write_file(path, nbytes);
        printf("{\"seconds\": %.9f, \"cpu\": %.6f}\n", now() - began, cpu() - cpu_began);
        fflush(stdout);
    }
    free(chunk);
    return 0;
}
