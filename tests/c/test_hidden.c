/* Hidden names: which are taken for one, and which are swept. */
#include "hidden.h"

#include <sys/file.h>

#include "faults.h"

FAULTY(int, fstatat, (int dirfd, const char *restrict name, struct stat *restrict file, int flags),
       (dirfd, name, file, flags))
FAULTY(int, unlinkat, (int dirfd, const char *name, int flags), (dirfd, name, flags))

static char folder[PATH_MAX];
static int dirfd_of_folder;

static void
make_hidden(const char *name, unsigned slot)
{
    char hidden[NAME_MAX + 1], path[PATH_MAX];

    s3dlio_hidden_name(name, slot, hidden);
    put_file(join(path, folder, hidden), "", 0);
}

static void
names_are_reserved_that_have_the_form(void)
{
    static const char *const reserved[] = {".a.s3dlio-0", ".a.s3dlio-99", ".file.bin.s3dlio-7",
                                           ".a.s3dlio-1.s3dlio-2"};
    static const char *const free_names[] = {
        "",          "7",          "77",          ".s3dlio-0",    "a.s3dlio-0",    ".a.s3dlio-",
        ".a.s3dlio", ".a.s3dli-0", ".a.s3dlio-x", ".a.s3dlio-0x", ".a.s3dlio-100", ".a.S3DLIO-0"};

    for (size_t i = 0; i < sizeof reserved / sizeof reserved[0]; i++)
        CHECK(s3dlio_hidden_is_reserved(reserved[i]));
    for (size_t i = 0; i < sizeof free_names / sizeof free_names[0]; i++)
        CHECK(!s3dlio_hidden_is_reserved(free_names[i]));
}

static void
every_name_that_is_made_is_reserved_fits_and_is_the_only_one(void)
{
    char name[NAME_MAX + 1], other[NAME_MAX + 1], a[NAME_MAX + 1], b[NAME_MAX + 1];

    memset(name, 'n', NAME_MAX);
    for (size_t nbytes = 1; nbytes <= NAME_MAX; nbytes++) {
        name[nbytes] = '\0';
        memcpy(other, name, nbytes + 1);
        other[nbytes - 1] = 'm';
        s3dlio_hidden_name(name, 99, a);
        CHECK(s3dlio_hidden_is_reserved(a));
        CHECK(strlen(a) <= NAME_MAX);
        s3dlio_hidden_name(other, 99, b);
        CHECK(strcmp(a, b) != 0);
        s3dlio_hidden_name(name, 98, b);
        CHECK(strcmp(a, b) != 0);
        name[nbytes] = 'n';
    }
}

static void
name_is_only_the_file_that_is_open(void)
{
    char path[PATH_MAX], moved[PATH_MAX], shm[PATH_MAX] = "/dev/shm/s3dlio-test-XXXXXX";
    int fd, other = mkstemp(shm);

    put_file(join(path, folder, "file"), "", 0);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    CHECK(fd >= 0);
    CHECK_EQ(s3dlio_hidden_is(fd, dirfd_of_folder, "file"), 1);
    CHECK_EQ(s3dlio_hidden_is(fd, dirfd_of_folder, "missing"), 0);
    CHECK_EQ(s3dlio_hidden_is(-1, dirfd_of_folder, "file"), -EBADF);
    CHECK_EQ(s3dlio_hidden_is(fd, dirfd_of_folder, "file/x"), -ENOTDIR);
    if (other >= 0) { /* on another file system */
        CHECK_EQ(s3dlio_hidden_is(other, dirfd_of_folder, "file"), 0);
        close(other);
        CHECK(unlink(shm) == 0);
    }
    CHECK(rename(path, join(moved, folder, "moved")) == 0);
    put_file(path, "", 0);
    CHECK_EQ(s3dlio_hidden_is(fd, dirfd_of_folder, "file"), 0);
    CHECK_EQ(s3dlio_hidden_is(fd, dirfd_of_folder, "moved"), 1);
    close(fd);
    CHECK(unlink(path) == 0 && unlink(moved) == 0);
}

static void
sweep_removes_what_nobody_holds(void)
{
    char path[PATH_MAX];
    int fd;

    CHECK(s3dlio_hidden_sweep(dirfd_of_folder, "missing"));
    put_file(join(path, folder, "hidden"), "x", 1);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    CHECK(fd >= 0 && flock(fd, LOCK_EX) == 0);
    CHECK(!s3dlio_hidden_sweep(dirfd_of_folder, "hidden"));
    CHECK(exists(path));
    close(fd);
    fail(&fstatat_fault, EIO, 1); /* it may be somebody else's by now */
    CHECK(!s3dlio_hidden_sweep(dirfd_of_folder, "hidden"));
    check_fired(&fstatat_fault);
    CHECK(exists(path));
    fail(&unlinkat_fault, EROFS, 1);
    CHECK(!s3dlio_hidden_sweep(dirfd_of_folder, "hidden"));
    check_fired(&unlinkat_fault);
    CHECK(exists(path));
    CHECK(s3dlio_hidden_sweep(dirfd_of_folder, "hidden"));
    CHECK(!exists(path));
}

static void
sweep_leaves_links_and_special_files(void)
{
    char path[PATH_MAX], link[PATH_MAX];

    put_file(join(path, folder, "file"), "x", 1);
    CHECK(symlink("file", join(link, folder, "hidden")) == 0);
    CHECK(!s3dlio_hidden_sweep(dirfd_of_folder, "hidden"));
    CHECK(exists(link) && exists(path));
    CHECK(unlink(link) == 0 && unlink(path) == 0);
    CHECK(mkfifo(link, 0600) == 0); /* must not wait for somebody at its other end */
    (void)s3dlio_hidden_sweep(dirfd_of_folder, "hidden");
    (void)unlink(link);
}

static void
sweep_of_all_goes_on_to_a_few_free_names_and_no_further(void)
{
    make_hidden("file", 0);
    make_hidden("file", 2);
    make_hidden("file", 5);
    make_hidden("file", 20);
    s3dlio_hidden_sweep_all(dirfd_of_folder, "file", "");
    CHECK_EQ(count_entries(folder), 1);
    for (unsigned slot = 0; slot < S3DLIO_HIDDEN_SLOTS; slot++)
        make_hidden("file", slot);
    CHECK_EQ(count_entries(folder), S3DLIO_HIDDEN_SLOTS);
    s3dlio_hidden_sweep_all(dirfd_of_folder, "file", "");
    CHECK_EQ(count_entries(folder), 0);
}

/* It need not have been possible to lock it. */
static void
sweep_of_all_leaves_the_own_name(void)
{
    char own[NAME_MAX + 1], path[PATH_MAX];

    make_hidden("file", 0);
    make_hidden("file", 1);
    s3dlio_hidden_name("file", 1, own);
    s3dlio_hidden_sweep_all(dirfd_of_folder, "file", own);
    CHECK_EQ(count_entries(folder), 1);
    CHECK(unlink(join(path, folder, own)) == 0);
}

int
main(void)
{
    int nfds;

    deadline(120);
    make_folder(folder, NULL);
    nfds = count_fds();
    dirfd_of_folder = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    CHECK(dirfd_of_folder >= 0);

    names_are_reserved_that_have_the_form();
    every_name_that_is_made_is_reserved_fits_and_is_the_only_one();
    name_is_only_the_file_that_is_open();
    sweep_removes_what_nobody_holds();
    sweep_leaves_links_and_special_files();
    sweep_of_all_goes_on_to_a_few_free_names_and_no_further();
    sweep_of_all_leaves_the_own_name();

    close(dirfd_of_folder);
    CHECK_EQ(count_fds(), nfds);
    CHECK_EQ(count_entries(folder), 0);
    remove_folder(folder);
    return 0;
}
