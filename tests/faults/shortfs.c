/*
 * A FUSE file system that hands everything on to a folder, and fails where it is told to.
 *
 *   shortfs MODE CONTROL SOURCE MOUNT [option of fuse]...
 *
 * MODE is 'direct_io' (each read and write comes here as the program made it), 'cached' (through
 * the page cache, writes at once) or 'writeback' (written when the kernel likes).  CONTROL is a
 * file that holds one 'struct rule' for each operation, in the order of 'enum op', and is mapped:
 * test_fuse.py sets rules there and reads the counts.  There is neither link() nor tmpfile().
 */
#define _GNU_SOURCE      /* O_DIRECT, renameat2() */
#define FUSE_USE_VERSION 314

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fuse.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

/* DIRECT: a read or write of a file that is open with O_DIRECT. */
enum op {
    OPEN,
    CREATE,
    READ,
    WRITE,
    DIRECT,
    TRUNCATE,
    FSYNC,
    FLUSH,
    RELEASE,
    RENAME,
    FSYNCDIR,
    MKDIR,
    UNLINK,
    NOPS
};

struct rule {
    int64_t calls;    /* counted here */
    int64_t fired;    /* counted here: failed, or cut short */
    int64_t nth;      /* which call fails; 0 none, -3 the third and all after it */
    int64_t error;    /* with this errno */
    int64_t every;    /* each so many-th call moves fewer bytes than asked for; 0 none */
    int64_t limit;    /* namely this many at most; 0 half of them */
    int64_t delay_ms; /* each call takes so long */
};

static struct rule *rules;
static const char *mode;
static int root = -1;

/* Returns the errno with which this call has to fail, negative, or 0. */
static int
enter(enum op op)
{
    struct rule *rule = &rules[op];
    int64_t call = __atomic_add_fetch(&rule->calls, 1, __ATOMIC_SEQ_CST);

    if (rule->delay_ms > 0)
        usleep((useconds_t)rule->delay_ms * 1000);
    if (rule->nth != call && (rule->nth >= 0 || call < -rule->nth))
        return 0;
    (void)__atomic_add_fetch(&rule->fired, 1, __ATOMIC_SEQ_CST);
    return -(int)rule->error;
}

/* How many of 'nbytes' are to be moved by the call that enter() has just counted. */
static size_t
cut(enum op op, size_t nbytes)
{
    struct rule *rule = &rules[op];
    size_t limit = rule->limit > 0 ? (size_t)rule->limit : (nbytes + 1) / 2;

    if (rule->every == 0 || limit >= nbytes ||
        __atomic_load_n(&rule->calls, __ATOMIC_SEQ_CST) % rule->every != 0)
        return nbytes;
    (void)__atomic_add_fetch(&rule->fired, 1, __ATOMIC_SEQ_CST);
    return limit;
}

/* Relative to the folder behind.  The path of an open file that has been removed is NULL. */
static const char *
below(const char *path)
{
    return path[1] ? path + 1 : ".";
}

static int
result(int returned)
{
    return returned < 0 ? -errno : 0;
}

static int
short_getattr(const char *path, struct stat *found, struct fuse_file_info *info)
{
    if (info)
        return result(fstat((int)info->fh, found));
    return result(fstatat(root, below(path), found, AT_SYMLINK_NOFOLLOW));
}

static int
open_below(const char *path, int flags, mode_t permissions, struct fuse_file_info *info)
{
    /* The kernel reads in order to fill a page of the cache that is written in part. */
    if (strcmp(mode, "writeback") == 0 && (flags & O_ACCMODE) == O_WRONLY)
        flags = (flags & ~O_ACCMODE) | O_RDWR;
    info->fh = (uint64_t)openat(root, below(path), flags & ~(O_DIRECT | O_APPEND), permissions);
    return (int64_t)info->fh < 0 ? -errno : 0;
}

static int
short_open(const char *path, struct fuse_file_info *info)
{
    int status = enter(OPEN);

    return status ? status : open_below(path, info->flags & ~(O_CREAT | O_EXCL), 0, info);
}

static int
short_create(const char *path, mode_t permissions, struct fuse_file_info *info)
{
    int status = enter(CREATE);

    return status ? status : open_below(path, info->flags | O_CREAT, permissions, info);
}

static int
enter_transfer(enum op op, const struct fuse_file_info *info)
{
    int status = enter(op);

    if (!status && (info->flags & O_DIRECT))
        status = enter(DIRECT);
    return status;
}

static int
short_read(const char *path, char *data, size_t nbytes, off_t offset, struct fuse_file_info *info)
{
    int status = enter_transfer(READ, info);
    ssize_t moved;

    (void)path;
    if (status)
        return status;
    moved = pread((int)info->fh, data, cut(READ, nbytes), offset);
    return moved < 0 ? -errno : (int)moved;
}

static int
short_write(const char *path, const char *data, size_t nbytes, off_t offset,
            struct fuse_file_info *info)
{
    int status = enter_transfer(WRITE, info);
    ssize_t moved;

    (void)path;
    if (status)
        return status;
    moved = pwrite((int)info->fh, data, cut(WRITE, nbytes), offset);
    return moved < 0 ? -errno : (int)moved;
}

static int
short_truncate(const char *path, off_t nbytes, struct fuse_file_info *info)
{
    int status = enter(TRUNCATE);

    (void)path;
    if (status)
        return status;
    return info ? result(ftruncate((int)info->fh, nbytes)) : -ENOSYS;
}

static int
short_fsync(const char *path, int data_only, struct fuse_file_info *info)
{
    int status = enter(FSYNC);

    (void)path;
    (void)data_only;
    return status ? status : result(fsync((int)info->fh));
}

static int
short_flush(const char *path, struct fuse_file_info *info)
{
    (void)path;
    (void)info;
    return enter(FLUSH);
}

static int
short_release(const char *path, struct fuse_file_info *info)
{
    (void)path;
    close((int)info->fh);
    return enter(RELEASE);
}

static int
short_rename(const char *from, const char *to, unsigned flags)
{
    int status = enter(RENAME);

    return status ? status : result(renameat2(root, below(from), root, below(to), flags));
}

static int
short_fsyncdir(const char *path, int data_only, struct fuse_file_info *info)
{
    (void)path;
    (void)data_only;
    (void)info;
    return enter(FSYNCDIR);
}

static int
short_mkdir(const char *path, mode_t permissions)
{
    int status = enter(MKDIR);

    return status ? status : result(mkdirat(root, below(path), permissions));
}

static int
short_unlink(const char *path)
{
    int status = enter(UNLINK);

    return status ? status : result(unlinkat(root, below(path), 0));
}

static int
short_rmdir(const char *path)
{
    return result(unlinkat(root, below(path), AT_REMOVEDIR));
}

static int
short_chmod(const char *path, mode_t permissions, struct fuse_file_info *info)
{
    if (info)
        return result(fchmod((int)info->fh, permissions));
    return result(fchmodat(root, below(path), permissions, 0));
}

static int
short_utimens(const char *path, const struct timespec times[2], struct fuse_file_info *info)
{
    if (info)
        return result(futimens((int)info->fh, times));
    return result(utimensat(root, below(path), times, AT_SYMLINK_NOFOLLOW));
}

static int
short_statfs(const char *path, struct statvfs *found)
{
    (void)path;
    return result(fstatvfs(root, found));
}

static int
short_readdir(const char *path, void *buffer, fuse_fill_dir_t fill, off_t offset,
              struct fuse_file_info *info, enum fuse_readdir_flags flags)
{
    int fd = openat(root, below(path), O_RDONLY | O_DIRECTORY);
    DIR *folder = fd < 0 ? NULL : fdopendir(fd);
    const struct dirent *entry;

    (void)offset;
    (void)info;
    (void)flags;
    if (!folder)
        return -errno;
    while ((entry = readdir(folder)))
        fill(buffer, entry->d_name, NULL, 0, 0);
    closedir(folder);
    return 0;
}

static void *
short_init(struct fuse_conn_info *connection, struct fuse_config *config)
{
    config->use_ino = 1;
    config->hard_remove = 1; /* else an open file that is removed gets another name */
    config->entry_timeout = config->attr_timeout = config->negative_timeout = 0;
    config->direct_io = strcmp(mode, "direct_io") == 0;
    if (strcmp(mode, "writeback") == 0)
        connection->want |= FUSE_CAP_WRITEBACK_CACHE;
    return NULL;
}

static const struct fuse_operations operations = {
    .init = short_init,
    .getattr = short_getattr,
    .open = short_open,
    .create = short_create,
    .read = short_read,
    .write = short_write,
    .truncate = short_truncate,
    .fsync = short_fsync,
    .flush = short_flush,
    .release = short_release,
    .rename = short_rename,
    .fsyncdir = short_fsyncdir,
    .mkdir = short_mkdir,
    .unlink = short_unlink,
    .rmdir = short_rmdir,
    .chmod = short_chmod,
    .utimens = short_utimens,
    .statfs = short_statfs,
    .readdir = short_readdir,
};

int
main(int argc, char **argv)
{
    int control;

    if (argc < 5) {
        fprintf(stderr, "usage: shortfs MODE CONTROL SOURCE MOUNT [option of fuse]...\n");
        return 2;
    }
    mode = argv[1];
    control = open(argv[2], O_RDWR | O_CLOEXEC);
    root = open(argv[3], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    rules = mmap(NULL, NOPS * sizeof *rules, PROT_READ | PROT_WRITE, MAP_SHARED, control, 0);
    if (control < 0 || root < 0 || rules == MAP_FAILED) {
        perror("shortfs");
        return 1;
    }
    umask(0);
    argv[3] = argv[0];
    return fuse_main(argc - 3, argv + 3, &operations, NULL);
}
