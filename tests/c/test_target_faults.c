/* The file in the making where the kernel refuses one of its steps, or somebody else takes one. */
#include "target.h"

#include <sys/file.h>

#include "faults.h"
#include "hidden.h"
#include "s3dlio/status.h"

FAULTY_FCNTL()
FAULTY(int, flock, (int fd, int operation), (fd, operation))
FAULTY(int, fstat, (int fd, struct stat *file), (fd, file))
FAULTY(int, fstatat, (int dirfd, const char *restrict path, struct stat *restrict file, int flags),
       (dirfd, path, file, flags))
FAULTY(int, linkat, (int from_dirfd, const char *from, int dirfd, const char *to, int flags),
       (from_dirfd, from, dirfd, to, flags))
FAULTY(ssize_t, readlink, (const char *restrict path, char *restrict link, size_t nbytes),
       (path, link, nbytes))
FAULTY(int, mkdirat, (int dirfd, const char *path, mode_t mode), (dirfd, path, mode))

static struct fault close_fault;

/* Closes it also where it reports a failure, as close(2) does. */
int
close(int fd)
{
    int status = (int)syscall(SYS_close, fd);

    return fires(&close_fault) ? -1 : status;
}

static char folder[PATH_MAX];
static char path[PATH_MAX];

static struct s3dlio_target
open_target(const char *name)
{
    struct s3dlio_target target;

    CHECK_EQ(s3dlio_target_open(&target, name, false), 0);
    CHECK_EQ(write(target.fd, "after", 5), 5);
    return target;
}

static void
check_published(struct s3dlio_target *target, const char *name)
{
    bool published = false;

    CHECK_EQ(s3dlio_target_publish(target, false, &published), 0);
    CHECK(published);
    s3dlio_target_close(target);
    CHECK(holds(name, "after", 5));
    CHECK(unlink(name) == 0);
}

/* Not published, and 'nentries' names are left in the folder. */
static void
check_failed(struct s3dlio_target *target, int error, int nentries)
{
    bool published = true;

    CHECK_EQ(s3dlio_target_publish(target, false, &published), error);
    CHECK(!published);
    s3dlio_target_close(target);
    CHECK_EQ(count_entries(folder), nentries);
}

/* By its descriptor or by its name in /proc: a kernel may refuse either. */
static void
one_way_to_link_is_enough(void)
{
    struct s3dlio_target target = open_target(path);

    fail(&linkat_fault, ENOENT, 2);
    check_failed(&target, -ENOENT, 0);
    check_fired(&linkat_fault);
    target = open_target(path);
    fail(&linkat_fault, ENOENT, 1);
    check_published(&target, path);
    check_fired(&linkat_fault);
}

/* All hidden names of the file belong to writers that live. */
static void
hidden_names_that_are_all_held_are_busy(void)
{
    int fds[S3DLIO_HIDDEN_SLOTS];
    char hidden[NAME_MAX + 1], name[PATH_MAX];
    struct s3dlio_target target;

    put_file(path, "before", 6);
    target = open_target(path);
    for (unsigned slot = 0; slot < S3DLIO_HIDDEN_SLOTS; slot++) {
        s3dlio_hidden_name("file", slot, hidden);
        fds[slot] = open(join(name, folder, hidden), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        CHECK(fds[slot] >= 0 && flock(fds[slot], LOCK_EX | LOCK_NB) == 0);
    }
    check_failed(&target, -EBUSY, 1 + S3DLIO_HIDDEN_SLOTS);
    CHECK(holds(path, "before", 6));
    for (unsigned slot = 0; slot < S3DLIO_HIDDEN_SLOTS; slot++)
        close(fds[slot]);
    target = open_target(path);
    check_published(&target, path);
    CHECK_EQ(count_entries(folder), 0);
}

struct refusal {
    int error;
    int status;
    bool hidden;
};

static void
open_without_tmpfile(void *argument)
{
    const struct refusal *refusal = argument;
    struct s3dlio_target target;

    forbid_open_flag(O_TMPFILE, (unsigned)refusal->error);
    CHECK_EQ(s3dlio_target_open(&target, path, false), refusal->status);
    CHECK_EQ(count_entries(folder), refusal->hidden);
    s3dlio_target_close(&target);
    CHECK_EQ(count_entries(folder), 0);
}

static void
only_missing_support_leads_to_a_hidden_name(void)
{
    static const struct refusal refusals[] = {
        {EOPNOTSUPP, 0, true},    {EISDIR, 0, true},        {ENOENT, 0, true},
        {EMFILE, -EMFILE, false}, {ENOSPC, -ENOSPC, false}, {EACCES, -EACCES, false},
    };

    for (size_t i = 0; i < sizeof refusals / sizeof refusals[0]; i++)
        in_child(open_without_tmpfile, (void *)&refusals[i]);
}

/* NFS without its lock daemon, say: a lock that nobody can have is none. */
static void
publish_without_locks(void *argument)
{
    struct s3dlio_target target;

    (void)argument;
    forbid_open_flag(O_TMPFILE, EOPNOTSUPP);
    fail(&flock_fault, ENOLCK, 1000);
    target = open_target(path);
    CHECK(*target.hidden);
    check_published(&target, path);
    check_fired(&flock_fault);
}

/* Another host, which does not see the lock, has swept the name and made it again. */
static void
publish_what_another_has_swept(void *argument)
{
    struct s3dlio_target target;
    char name[PATH_MAX];
    int fd;

    (void)argument;
    forbid_open_flag(O_TMPFILE, EOPNOTSUPP);
    target = open_target(path);
    CHECK(unlink(join(name, folder, target.hidden)) == 0);
    put_file(name, "another's", 9);
    fd = open(name, O_RDONLY | O_CLOEXEC);
    CHECK(fd >= 0 && flock(fd, LOCK_EX) == 0);
    check_failed(&target, -ESTALE, 1);
    CHECK(holds(name, "another's", 9));
    close(fd);
    CHECK(unlink(name) == 0);
}

static void
refused_looks_are_errors_at_the_opening(void)
{
    struct s3dlio_target target;

    fail(&fstatat_fault, EIO, 1);
    CHECK_EQ(s3dlio_target_open(&target, path, false), -EIO);
    check_fired(&fstatat_fault);
    put_file(path, "before", 6);
    fail(&fstat_fault, EIO, 1); /* whose the folder is, is not known */
    CHECK_EQ(s3dlio_target_open(&target, path, false), -EIO);
    check_fired(&fstat_fault);
    fail_after(&fstat_fault, 1, EIO, 1);
    CHECK_EQ(s3dlio_target_open(&target, path, false), -EIO);
    check_fired(&fstat_fault);
    CHECK(holds(path, "before", 6));
    CHECK(unlink(path) == 0);
}

static void
folder_that_cannot_be_made_leaves_none(void)
{
    struct s3dlio_target target;
    char name[PATH_MAX];

    target = open_target(join(name, folder, "a//b/c/file"));
    fail_after(&mkdirat_fault, 2, ENOSPC, 1);
    check_failed(&target, -ENOSPC, 0);
    check_fired(&mkdirat_fault);
}

static void
file_in_the_place_of_a_folder_is_an_error_and_stays(void)
{
    struct s3dlio_target target;
    char name[PATH_MAX], other[PATH_MAX];

    target = open_target(join(name, folder, "a/b/file"));
    put_file(join(other, folder, "a"), "another's", 9);
    check_failed(&target, -ENOTDIR, 1);
    CHECK(holds(other, "another's", 9));
    CHECK(unlink(other) == 0);
}

static void
link_in_the_working_folder_is_followed_or_an_error(void)
{
    struct s3dlio_target target;
    char name[PATH_MAX];

    CHECK(chdir(folder) == 0);
    CHECK(symlink("file", join(name, folder, "link")) == 0);
    target = open_target("link");
    check_published(&target, path);
    fail(&readlink_fault, EIO, 1);
    CHECK_EQ(s3dlio_target_open(&target, "link", false), -EIO);
    check_fired(&readlink_fault);
    CHECK(chdir("/") == 0);
    CHECK(unlink(name) == 0);
}

static void
flush_reports_what_close_does_and_needs_no_descriptor(void)
{
    struct s3dlio_target target = open_target(path);

    CHECK_EQ(s3dlio_target_flush(&target), 0);
    fail(&close_fault, EDQUOT, 1);
    CHECK_EQ(s3dlio_target_flush(&target), -EDQUOT);
    check_fired(&close_fault);
    fail(&fcntl_fault, EMFILE, 1);
    CHECK_EQ(s3dlio_target_flush(&target), 0);
    check_fired(&fcntl_fault);
    check_published(&target, path);
}

int
main(void)
{
    int nfds;

    deadline(120);
    make_folder(folder, NULL);
    join(path, folder, "file");
    nfds = count_fds();

    one_way_to_link_is_enough();
    hidden_names_that_are_all_held_are_busy();
    only_missing_support_leads_to_a_hidden_name();
    in_child(publish_without_locks, NULL);
    in_child(publish_what_another_has_swept, NULL);
    refused_looks_are_errors_at_the_opening();
    folder_that_cannot_be_made_leaves_none();
    file_in_the_place_of_a_folder_is_an_error_and_stays();
    link_in_the_working_folder_is_followed_or_an_error();
    flush_reports_what_close_does_and_needs_no_descriptor();

    CHECK_EQ(count_fds(), nfds);
    CHECK_EQ(count_entries(folder), 0);
    remove_folder(folder);
    return 0;
}
