/*
 * A disk to break: `logdisk IMAGE LOG FOLDER` mounts (FUSE) two files on FOLDER.
 *
 *   disk     the bytes of IMAGE, for losetup(8).  Every write and every flush is appended to LOG,
 * in order, before it is acknowledged. control  takes one command a write(2): mark TEXT appends
 * TEXT to LOG fail WHAT ERRNO SKIP EVERY  from now on lets SKIP of WHAT (write, fsync, both) pass,
 *                                          then answers each EVERY'th with ERRNO, storing nothing
 *              heal                        ends that
 *            and gives when read: the writes and the flushes that were done, and those that failed.
 *
 * LOG is a row of struct record, each with 'nbytes' bytes after it.
 */
#define FUSE_USE_VERSION 31
#define _GNU_SOURCE      /* pwrite(), off64_t in fuse.h */

#include <errno.h>
#include <fcntl.h>
#include <fuse.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum kind { WRITE = 'W', FLUSH = 'F', MARK = 'M' };

struct record {
    uint64_t kind, offset, nbytes;
};

static int image = -1;
static int log_fd = -1;
static struct {
    int on_write, on_fsync, error;
    unsigned long skip, every, times, seen;
} fault;
static unsigned long nwrites, nflushes, nfailed_writes, nfailed_flushes;

static int
is_disk(const char *path)
{
    return strcmp(path, "/disk") == 0;
}

static int
append(enum kind kind, uint64_t offset, const char *data, size_t nbytes)
{
    struct record record = {kind, offset, nbytes};
    struct iovec parts[2] = {{&record, sizeof record}, {(void *)(uintptr_t)data, nbytes}};

    if (log_fd < 0)
        return 0;
    return writev(log_fd, parts, 2) == (ssize_t)(sizeof record + nbytes) ? 0 : -EIO;
}

/* Whether this one fails, which is counted. */
static int
strikes(int meant, unsigned long *nfailed)
{
    if (!meant || fault.times == 0 || fault.seen++ < fault.skip ||
        (fault.seen - fault.skip - 1) % fault.every != 0)
        return 0;
    fault.times--;
    ++*nfailed;
    return 1;
}

static int
obey(const char *data, size_t nbytes)
{
    char line[256], what[8];

    if (nbytes >= sizeof line)
        return -EINVAL;
    memcpy(line, data, nbytes);
    line[nbytes] = '\0';
    if (strncmp(line, "mark ", 5) == 0)
        return append(MARK, 0, line + 5, nbytes - 5);
    memset(&fault, 0, sizeof fault);
    if (strcmp(line, "heal") == 0)
        return 0;
    if (sscanf(line, "fail %7s %d %lu %lu %lu", what, &fault.error, &fault.skip, &fault.every,
               &fault.times) != 5 ||
        fault.error <= 0 || fault.every == 0)
        return -EINVAL;
    fault.on_write = strcmp(what, "fsync") != 0;
    fault.on_fsync = strcmp(what, "write") != 0;
    return 0;
}

static void *
on_init(struct fuse_conn_info *connection, struct fuse_config *config)
{
    (void)config;
    connection->max_write = 1 << 20;
    return NULL;
}

static int
on_getattr(const char *path, struct stat *file, struct fuse_file_info *open_file)
{
    (void)open_file;
    memset(file, 0, sizeof *file);
    file->st_nlink = 1;
    if (strcmp(path, "/") == 0)
        file->st_mode = S_IFDIR | 0700;
    else if (strcmp(path, "/control") == 0)
        file->st_mode = S_IFREG | 0600;
    else if (!is_disk(path))
        return -ENOENT;
    else if (fstat(image, file) != 0)
        return -errno;
    return 0;
}

static int
on_open(const char *path, struct fuse_file_info *open_file)
{
    (void)path;
    open_file->direct_io =
        1; /* past this side's page cache, so that a write is here when it returns */
    return 0;
}

/* `control` is opened like any file that is written anew. */
static int
on_truncate(const char *path, off_t nbytes, struct fuse_file_info *open_file)
{
    (void)nbytes;
    (void)open_file;
    return is_disk(path) ? -EPERM : 0;
}

static int
on_read(const char *path, char *data, size_t nbytes, off_t offset, struct fuse_file_info *open_file)
{
    char line[128];
    int done;

    (void)open_file;
    if (is_disk(path)) {
        done = (int)pread(image, data, nbytes, offset);
        return done >= 0 ? done : -errno;
    }
    done = snprintf(line, sizeof line, "%lu %lu %lu %lu\n", nwrites, nflushes, nfailed_writes,
                    nfailed_flushes);
    if (offset >= done)
        return 0;
    done -= (int)offset;
    if ((size_t)done > nbytes)
        done = (int)nbytes;
    memcpy(data, line + offset, (size_t)done);
    return done;
}

static int
on_write(const char *path, const char *data, size_t nbytes, off_t offset,
         struct fuse_file_info *open_file)
{
    ssize_t done;
    int status;

    (void)open_file;
    if (!is_disk(path)) {
        status = obey(data, nbytes);
        return status ? status : (int)nbytes;
    }
    if (strikes(fault.on_write, &nfailed_writes))
        return -fault.error;
    done = pwrite(image, data, nbytes, offset);
    if (done != (ssize_t)nbytes) { /* IMAGE may lie where there is no room for it */
        nfailed_writes++;
        return done < 0 ? -errno : -ENOSPC;
    }
    nwrites++;
    status = append(WRITE, (uint64_t)offset, data, nbytes);
    return status ? status : (int)nbytes;
}

static int
on_fsync(const char *path, int only_data, struct fuse_file_info *open_file)
{
    (void)only_data;
    (void)open_file;
    if (!is_disk(path))
        return 0;
    if (strikes(fault.on_fsync, &nfailed_flushes))
        return -fault.error;
    nflushes++;
    return append(FLUSH, 0, "", 0);
}

int
main(int argc, char **argv)
{
    static const struct fuse_operations operations = {
        .init = on_init,
        .getattr = on_getattr,
        .open = on_open,
        .truncate = on_truncate,
        .read = on_read,
        .write = on_write,
        .fsync = on_fsync,
    };
    char foreground[] = "-f", one_thread[] = "-s";

    if (argc != 4) {
        fprintf(stderr, "usage: %s IMAGE LOG FOLDER\n", argv[0]);
        return 2;
    }
    image = open(argv[1], O_RDWR | O_CLOEXEC);
    if (*argv[2])
        log_fd = open(argv[2], O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (image < 0 || (*argv[2] && log_fd < 0)) {
        perror(argv[0]);
        return 1;
    }
    char *arguments[] = {argv[0], foreground, one_thread, argv[3], NULL};
    return fuse_main(4, arguments, &operations, NULL);
}
