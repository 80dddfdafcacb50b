/*
 * What several C tests need: a folder of their own, data, a second CRC32C, and children.
 */
#ifndef SUPPORT_H
#define SUPPORT_H

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "check.h"

#define KIB ((size_t)1 << 10)
#define MIB ((size_t)1 << 20)

/* Each test uses some of them. */
#define HELPER static __attribute__((unused))

/* A test that hangs ends with SIGALRM. */
HELPER void
deadline(unsigned seconds)
{
    alarm(seconds);
}

HELPER void
sleep_ms(int ms)
{
    struct timespec time = {ms / 1000, (long)(ms % 1000) * 1000000};

    while (nanosleep(&time, &time) != 0)
        CHECK(errno == EINTR);
}

HELPER uint64_t
now_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

/* Data. */

/* Numbers that repeat with the seed (xorshift64). */
HELPER uint64_t
random_next(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

/* From 'least' to 'most'. */
HELPER size_t
random_between(uint64_t *state, size_t least, size_t most)
{
    return least + (size_t)(random_next(state) % (most - least + 1));
}

/* Bytes that neither repeat nor compress. */
HELPER unsigned char *
make_data(size_t nbytes, uint64_t seed)
{
    unsigned char *data = malloc(nbytes + 8);
    uint64_t state = seed * 0x9e3779b97f4a7c15u + 1;

    CHECK(data);
    for (size_t i = 0; i < nbytes; i += 8) {
        uint64_t word = random_next(&state);

        memcpy(data + i, &word, 8);
    }
    return data;
}

/* Bytes that compress to about half. */
HELPER unsigned char *
make_text(size_t nbytes, uint64_t seed)
{
    unsigned char *data = make_data(nbytes, seed);

    for (size_t i = 0; i < nbytes; i++)
        data[i] = (unsigned char)("etaoin shrdlucmf"[data[i] & 15]);
    return data;
}

/* CRC32C by its definition (RFC 3720, appendix B.4), a byte at a time; not the library's.
 * Sanitizers would make it the slowest part of each test. */
HELPER __attribute__((no_sanitize("thread", "address", "undefined"))) uint32_t
slow_crc32c(uint32_t crc, const void *data, size_t nbytes)
{
    static uint32_t table[256];
    const unsigned char *bytes = data;

    if (!table[1]) {
        for (uint32_t i = 0; i < 256; i++) {
            uint32_t value = i;

            for (int bit = 0; bit < 8; bit++)
                value = value & 1 ? value >> 1 ^ 0x82f63b78u : value >> 1;
            table[i] = value;
        }
    }
    crc = ~crc;
    for (size_t i = 0; i < nbytes; i++)
        crc = table[(crc ^ bytes[i]) & 255] ^ crc >> 8;
    return ~crc;
}

/* Files. */

/* Makes a folder below $TMPDIR or /tmp, or below 'parent'. */
HELPER void
make_folder(char folder[PATH_MAX], const char *parent)
{
    const char *tmp = getenv("TMPDIR");

    if (!parent)
        parent = tmp && *tmp ? tmp : "/tmp";
    snprintf(folder, PATH_MAX, "%s/s3dlio-test-XXXXXX", parent);
    CHECK(mkdtemp(folder));
}

HELPER int
remove_entry(const char *path, const struct stat *file, int kind, struct FTW *where)
{
    (void)file;
    (void)kind;
    (void)where;
    return remove(path);
}

HELPER void
remove_folder(const char *folder)
{
    CHECK(nftw(folder, remove_entry, 16, FTW_DEPTH | FTW_PHYS) == 0);
}

/* Writes 'folder'/'name' to 'path'. */
HELPER const char *
join(char path[PATH_MAX], const char *folder, const char *name)
{
    CHECK(snprintf(path, PATH_MAX, "%s/%s", folder, name) < PATH_MAX);
    return path;
}

/* How many names 'folder' holds. */
HELPER int
count_entries(const char *folder)
{
    DIR *dir = opendir(folder);
    int n = 0;

    CHECK(dir);
    for (struct dirent *entry; (entry = readdir(dir));)
        n += strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0;
    closedir(dir);
    return n;
}

HELPER int
count_fds(void)
{
    return count_entries("/proc/self/fd");
}

HELPER bool
exists(const char *path)
{
    struct stat file;

    return lstat(path, &file) == 0;
}

HELPER void
put_file(const char *path, const void *data, size_t nbytes)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);

    CHECK(fd >= 0);
    for (size_t done = 0; done < nbytes;) {
        ssize_t n = write(fd, (const char *)data + done, nbytes - done);

        CHECK(n > 0);
        done += (size_t)n;
    }
    CHECK(close(fd) == 0);
}

HELPER unsigned char *
get_file(const char *path, size_t *nbytes_ret)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat file;
    unsigned char *data;

    CHECK(fd >= 0);
    CHECK(fstat(fd, &file) == 0);
    *nbytes_ret = (size_t)file.st_size;
    data = malloc(*nbytes_ret + 1);
    CHECK(data);
    for (size_t done = 0; done < *nbytes_ret;) {
        ssize_t n = read(fd, data + done, *nbytes_ret - done);

        CHECK(n > 0);
        done += (size_t)n;
    }
    close(fd);
    return data;
}

/* Whether the file holds these bytes and no more. */
HELPER bool
holds(const char *path, const void *data, size_t nbytes)
{
    size_t file_nbytes;
    unsigned char *file = get_file(path, &file_nbytes);
    bool same = file_nbytes == nbytes && memcmp(file, data, nbytes) == 0;

    free(file);
    return same;
}

/* Whether a file in 'folder' can be written with O_DIRECT, by a trial of our own. */
HELPER bool
takes_direct(const char *folder)
{
    char path[PATH_MAX];
    struct statfs fs;
    void *block;
    int fd;
    bool takes;

    CHECK(statfs(folder, &fs) == 0);
    if (fs.f_type == 0x01021994) /* tmpfs accepts the flag and ignores it */
        return false;
    CHECK(posix_memalign(&block, 4096, 4096) == 0);
    memset(block, 0, 4096);
    fd = open(join(path, folder, "direct-trial"), O_WRONLY | O_CREAT | O_DIRECT | O_CLOEXEC, 0600);
    takes = fd >= 0 && pwrite(fd, block, 4096, 0) == 4096;
    if (fd >= 0)
        close(fd);
    unlink(path);
    free(block);
    return takes;
}

/* The flags, as the kernel knows them, of this process's open file whose name begins with 'folder';
 * -1 if there is none. */
HELPER long
open_file_flags(const char *folder)
{
    DIR *dir = opendir("/proc/self/fd");
    char resolved[PATH_MAX];
    long flags = -1;

    CHECK(dir && realpath(folder, resolved));
    for (struct dirent *entry; flags < 0 && (entry = readdir(dir));) {
        char name[PATH_MAX], target[PATH_MAX], line[256];
        struct stat file;
        ssize_t n;
        FILE *info;

        snprintf(name, sizeof name, "/proc/self/fd/%s", entry->d_name);
        n = readlink(name, target, sizeof target - 1);
        if (n < 0 || stat(name, &file) != 0 || !S_ISREG(file.st_mode))
            continue;
        target[n] = '\0';
        if (strncmp(target, resolved, strlen(resolved)) != 0)
            continue;
        snprintf(name, sizeof name, "/proc/self/fdinfo/%s", entry->d_name);
        info = fopen(name, "r");
        CHECK(info);
        while (fgets(line, sizeof line, info)) {
            if (strncmp(line, "flags:", 6) == 0)
                flags = strtol(line + 6, NULL, 8);
        }
        fclose(info);
    }
    closedir(dir);
    return flags;
}

/* The engines that can be forced here, by a trial of our own: io_uring may be forbidden. */
HELPER bool
has_uring(void)
{
    unsigned char params[256] = {0}; /* struct io_uring_params, and more */
    int fd = (int)syscall(425 /* io_uring_setup */, 1, params);

    if (fd >= 0)
        close(fd);
    return fd >= 0;
}

/* NULL leaves the choice to the library. */
HELPER void
force_engine(const char *name)
{
    if (name)
        CHECK(setenv("S3DLIO_IO_ENGINE", name, 1) == 0);
    else
        CHECK(unsetenv("S3DLIO_IO_ENGINE") == 0);
}

/* Children. */

/* Waits for a child to end and returns its exit status; a signal is a failure. */
HELPER int
wait_for(pid_t child)
{
    int status;

    while (waitpid(child, &status, 0) < 0)
        CHECK(errno == EINTR);
    if (!WIFEXITED(status))
        fprintf(stderr, "child ended with signal %d\n", WTERMSIG(status));
    CHECK(WIFEXITED(status));
    return WEXITSTATUS(status);
}

/* Ends a child without exit handlers: what the parent had open is not the child's to tidy. */
#ifdef S3DLIO_COVERAGE
void
__gcov_dump(void);
#endif

HELPER _Noreturn void
leave_child(int status)
{
#ifdef S3DLIO_COVERAGE
    __gcov_dump(); /* else an exit handler would */
#endif
    _exit(status);
}

HELPER pid_t
start_child(void (*run)(void *), void *argument)
{
    pid_t child = fork();

    CHECK(child >= 0);
    if (child == 0) {
        deadline(60);
        prctl(PR_SET_PDEATHSIG, SIGKILL); /* with a failed test nobody would wait for it */
        run(argument);
        leave_child(0);
    }
    return child;
}

/* Runs a function in a child, where it may change what cannot be changed back. */
HELPER void
in_child(void (*run)(void *), void *argument)
{
    CHECK_EQ(wait_for(start_child(run, argument)), 0);
}

/* From here on the calling process's system calls from 'first' to 'last' fail with 'error'. */
HELPER void
forbid_calls(unsigned first, unsigned last, unsigned error)
{
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, first, 0, 2),
        BPF_JUMP(BPF_JMP | BPF_JGT | BPF_K, last, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (error & SECCOMP_RET_DATA)),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof filter / sizeof filter[0], filter};

    CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
    CHECK(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0);
}

/* From here on openat(2) with 'flag' among its flags fails with 'error'. */
HELPER void
forbid_open_flag(unsigned flag, unsigned error)
{
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_openat, 0, 4),
        /* The low half of the third argument, where it is on a little-endian machine. */
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[2])),
        BPF_STMT(BPF_ALU | BPF_AND | BPF_K, flag),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, flag, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (error & SECCOMP_RET_DATA)),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof filter / sizeof filter[0], filter};

    CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
    CHECK(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0);
}

#endif /* SUPPORT_H */
