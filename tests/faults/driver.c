/*
 * Writes one file and says what each call returned, for tests that make system calls fail.
 *
 *   driver PATH NBYTES [OPTION=NUMBER]... [wrong=FAULT]
 *
 * What lies between its two calls of getppid(2), which nothing else here makes, is the library's.
 * With wrong=... a plain writer of its own does the work, with a fault that the test must find, or
 * with none (wrong=none).
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "s3dlio/writer.h"

/* No multiple of the block, so that chunks lie across the borders of blocks. */
#define CHUNK ((size_t)50000)

struct result {
    int open, write, close;
    const char *engine;
    int direct;
};

/* Bytes that differ from place to place; the test knows them too. */
static unsigned char *
make_data(size_t nbytes)
{
    unsigned char *data = malloc(nbytes + 1);

    for (size_t i = 0; data && i < nbytes; i++) {
        uint64_t x = i * 0x9e3779b97f4a7c15u;

        data[i] = (unsigned char)((x ^ x >> 29) * 0xbf58476d1ce4e5b9u >> 56);
    }
    return data;
}

static int
count_fds(void)
{
    DIR *dir = opendir("/proc/self/fd");
    int n = 0;

    while (dir && readdir(dir))
        n++;
    closedir(dir);
    return n;
}

/* From here on no descriptor from 'limit' on is given out; returns the limit that was there. */
static int
limit_fds(int limit)
{
    struct rlimit now;
    int before;

    if (getrlimit(RLIMIT_NOFILE, &now) != 0)
        abort();
    before = (int)now.rlim_cur;
    now.rlim_cur = (rlim_t)limit;
    if (setrlimit(RLIMIT_NOFILE, &now) != 0)
        abort();
    return before;
}

/* The lowest that is free; there must be no gap below it. */
static int
next_fd(void)
{
    int fd = dup(0);

    close(fd);
    return fd;
}

static struct result
write_with_library(const char *path, const unsigned char *data, size_t nbytes,
                   const struct s3dlio_writer_options *options)
{
    struct result result = {.engine = "none"};
    struct s3dlio_writer_stats stats;
    struct s3dlio_writer *writer;

    result.open = s3dlio_writer_open(&writer, path, options);
    if (result.open)
        return result;
    for (size_t done = 0; !result.write && done < nbytes; done += CHUNK)
        result.write = s3dlio_writer_write(writer, data + done,
                                           nbytes - done < CHUNK ? nbytes - done : CHUNK, NULL);
    result.close = s3dlio_writer_close(writer);
    if (s3dlio_writer_close(writer) != result.close || (result.write && !result.close))
        abort(); /* the first failure is the writer's */
    if (s3dlio_writer_get_stats(writer, &stats, sizeof stats) == 0) {
        result.engine = stats.engine;
        result.direct = stats.direct;
    }
    s3dlio_writer_free(writer);
    return result;
}

/* A temporary name, then rename: what a careful program does, but for the fault 'wrong'. */
static int
write_plain(const char *path, const unsigned char *data, size_t nbytes, bool sync,
            const char *wrong)
{
    char folder[PATH_MAX], hidden[PATH_MAX + 8];
    bool in_place = strcmp(wrong, "in-place") == 0;
    int status = 0;
    int dirfd, fd;

    snprintf(folder, sizeof folder, "%.*s", (int)(strrchr(path, '/') - path), path);
    snprintf(hidden, sizeof hidden, "%s/.new", folder);
    dirfd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (dirfd < 0)
        return -errno;
    fd = open(in_place ? path : hidden, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (fd < 0)
        status = -errno;
    for (size_t done = 0; !status && done < nbytes; done += CHUNK) {
        size_t some = nbytes - done < CHUNK ? nbytes - done : CHUNK;

        while (!status && pwrite(fd, data + done, some, (off_t)done) != (ssize_t)some) {
            if (strcmp(wrong, "ignored-write") == 0)
                break;
            if (errno != EINTR && errno != EAGAIN)
                status = -errno;
        }
    }
    if (!status && sync && fsync(fd) != 0) {
        status = -errno;
        while (strcmp(wrong, "repeated-fsync") == 0 && status)
            status = fsync(fd) == 0 ? 0 : -errno;
        if (strcmp(wrong, "ignored-fsync") == 0)
            status = 0;
    }
    if (status && strcmp(wrong, "leak") == 0)
        fd = -1;
    if (fd >= 0 && close(fd) != 0 && !status && strcmp(wrong, "ignored-close") != 0)
        status = -errno;
    if (!status && !in_place && rename(hidden, path) != 0)
        status = -errno;
    if (status && !in_place && strcmp(wrong, "leftover") != 0)
        unlink(hidden);
    if (!status && sync && fsync(dirfd) != 0)
        status = -errno;
    close(dirfd);
    return status;
}

static struct result
put_with_library(const char *path, const unsigned char *data, size_t nbytes,
                 const struct s3dlio_writer_options *options)
{
    return (struct result){.close = s3dlio_writer_put(path, data, nbytes, options),
                           .engine = "put"};
}

int
main(int argc, char **argv)
{
    struct s3dlio_writer_options options = {.struct_nbytes = sizeof options};
    struct result result = {.engine = "plain"};
    const char *wrong = NULL;
    bool put = false;
    unsigned char *data;
    size_t nbytes;
    int nfds, limit, nmore = -1;

    if (argc < 3)
        return 2;
    nbytes = strtoul(argv[2], NULL, 10);
    for (int i = 3; i < argc; i++) {
        char *value = strchr(argv[i], '=');
        int number = value ? atoi(value + 1) : 0;

        if (strncmp(argv[i], "block=", 6) == 0)
            options.block_nbytes = (size_t)number;
        else if (strncmp(argv[i], "in_flight=", 10) == 0)
            options.in_flight = (unsigned)number;
        else if (strncmp(argv[i], "direct=", 7) == 0)
            options.direct = (enum s3dlio_direct)number;
        else if (strncmp(argv[i], "level=", 6) == 0)
            options.zstd_level = number;
        else if (strncmp(argv[i], "durability=", 11) == 0)
            options.durability = (enum s3dlio_durability)number;
        else if (strncmp(argv[i], "more_fds=", 9) == 0)
            nmore = number;
        else if (strncmp(argv[i], "put=", 4) == 0)
            put = number != 0;
        else if (strncmp(argv[i], "wrong=", 6) == 0)
            wrong = value + 1;
        else
            return 2;
    }
    data = make_data(nbytes);
    nfds = count_fds();
    if (!data)
        return 3;
    limit = nmore < 0 ? 0 : limit_fds(next_fd() + nmore);

    (void)getppid();
    if (wrong)
        result.close =
            write_plain(argv[1], data, nbytes, options.durability != S3DLIO_DURABILITY_NONE, wrong);
    else if (put)
        result = put_with_library(argv[1], data, nbytes, &options);
    else
        result = write_with_library(argv[1], data, nbytes, &options);
    (void)getppid();

    if (limit)
        limit_fds(limit);
    printf("%d %d %d %d %s %d\n", result.open, result.write, result.close, count_fds() - nfds,
           result.engine, result.direct);
    free(data);
    return 0;
}
