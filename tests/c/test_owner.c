/* What a new file takes over from the one it replaces, and what somebody else may have planted. */
#include "owner.h"

#include <sys/xattr.h>

#include "faults.h"

FAULTY(ssize_t, lgetxattr, (const char *path, const char *name, void *value, size_t nbytes),
       (path, name, value, nbytes))

static char folder[PATH_MAX];
static int dirfd_of_folder;

static void
planted_is_what_others_put_where_all_may(void)
{
    const mode_t tmp = S_IFDIR | S_ISVTX | 0777;
    const uid_t me = geteuid(), root = me + 1, other = me + 2;
    const struct {
        mode_t mode;
        uid_t owner;
        bool planted;
    } cases[] = {
        {tmp, other, true},
        {tmp, me, false},
        {tmp, root, false},
        {S_IFDIR | 0777, other, false},           /* the folder does not promise anything */
        {S_IFDIR | S_ISVTX | 0775, other, false}, /* who may write there is trusted */
        {S_IFDIR | 0755, other, false},
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct stat where = {.st_mode = cases[i].mode, .st_uid = root};
        struct stat thing = {.st_mode = S_IFREG | 0644, .st_uid = cases[i].owner};

        CHECK_EQ(s3dlio_owner_planted(&where, &thing), cases[i].planted);
    }
}

static void
planted_link_is_judged_with_its_folder(void)
{
    char path[PATH_MAX], long_path[2 * PATH_MAX];

    CHECK(symlink("target", join(path, folder, "link")) == 0);
    CHECK(!s3dlio_owner_planted_link(path));
    CHECK(chdir(folder) == 0);
    CHECK(!s3dlio_owner_planted_link("link"));
    /* What cannot be looked at is not trusted. */
    CHECK(s3dlio_owner_planted_link("missing"));
    CHECK(s3dlio_owner_planted_link("missing/link"));
    memset(long_path, '/', sizeof long_path);
    snprintf(long_path + PATH_MAX, PATH_MAX, "/%s", "link");
    CHECK(s3dlio_owner_planted_link(long_path));
    if (geteuid() == 0) {
        CHECK(lchown(path, 65534, 65534) == 0);
        CHECK(!s3dlio_owner_planted_link("link"));
        CHECK(chmod(folder, 01777) == 0);
        CHECK(s3dlio_owner_planted_link("link"));
        CHECK(s3dlio_owner_planted_link(path));
        CHECK(chmod(folder, 0755) == 0);
    }
    CHECK(chdir("/") == 0);
    CHECK(unlink(path) == 0);
}

/* The mode that a new file gets when it replaces one of mode 0664 of other people. */
static mode_t
inherited_mode(uid_t owner, gid_t group, int acl_error)
{
    char old_path[PATH_MAX], new_path[PATH_MAX];
    struct stat old, new;
    int fd;

    put_file(join(old_path, folder, "old"), "", 0);
    CHECK(chown(old_path, owner, group) == 0 && chmod(old_path, 0664) == 0);
    CHECK(stat(old_path, &old) == 0);
    fd = open(join(new_path, folder, "new"), O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    CHECK(fd >= 0);
    if (acl_error)
        fail(&lgetxattr_fault, acl_error, 1);
    CHECK_EQ(s3dlio_owner_inherit(fd, dirfd_of_folder, "old", &old), 0);
    if (acl_error)
        check_fired(&lgetxattr_fault);
    CHECK(fstat(fd, &new) == 0);
    CHECK_EQ(new.st_uid, owner);
    CHECK_EQ(new.st_gid, group);
    close(fd);
    CHECK(unlink(old_path) == 0 && unlink(new_path) == 0);
    return new.st_mode & 07777;
}

static void
mode_and_owner_are_taken_over(void)
{
    uid_t me = geteuid();
    gid_t mine = getegid();

    CHECK_EQ(inherited_mode(me, mine, 0), 0664);
    if (me != 0)
        return;
    CHECK_EQ(inherited_mode(65534, mine, 0), 0664);
    CHECK_EQ(inherited_mode(me, 65534, 0), 0664);
}

/* With an ACL that cannot be read, the group bits could open the file to more people. */
static void
group_gets_nothing_where_the_acl_is_unknown(void)
{
    uid_t me = geteuid();
    gid_t mine = getegid();

    CHECK_EQ(inherited_mode(me, mine, ENODATA), 0664);
    CHECK_EQ(inherited_mode(me, mine, EOPNOTSUPP), 0664);
    CHECK_EQ(inherited_mode(me, mine, EIO), 0604);
    CHECK_EQ(inherited_mode(me, mine, ERANGE), 0604);
}

static void
what_cannot_be_taken_over_is_an_error(void)
{
    struct stat old = {.st_mode = S_IFREG | 0600, .st_uid = geteuid(), .st_gid = getegid()};
    char path[PATH_MAX];
    int fd;

    CHECK_EQ(s3dlio_owner_inherit(-1, dirfd_of_folder, "old", &old), -EBADF);
    put_file(join(path, folder, "new"), "", 0);
    fd = open(path, O_PATH | O_CLOEXEC); /* can be looked at, not changed */
    CHECK(fd >= 0);
    CHECK_EQ(s3dlio_owner_inherit(fd, dirfd_of_folder, "old", &old), -EBADF);
    close(fd);
    CHECK(unlink(path) == 0);
}

int
main(void)
{
    int nfds;

    deadline(120);
    umask(022);
    make_folder(folder, NULL);
    CHECK(chmod(folder, 0755) == 0);
    nfds = count_fds();
    dirfd_of_folder = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    CHECK(dirfd_of_folder >= 0);

    planted_is_what_others_put_where_all_may();
    planted_link_is_judged_with_its_folder();
    mode_and_owner_are_taken_over();
    group_gets_nothing_where_the_acl_is_unknown();
    what_cannot_be_taken_over_is_an_error();

    close(dirfd_of_folder);
    CHECK_EQ(count_fds(), nfds);
    CHECK_EQ(count_entries(folder), 0);
    remove_folder(folder);
    return 0;
}
