/* O_DIRECT on one file: had where it is to be had, and left where it proves not to work. */
#include "direct.h"

#include "engine.h"
#include "faults.h"
#include "s3dlio/status.h"

/* The file systems that are not here. */

FAULTY_FCNTL()

static long fs_type;
static bool told;
static unsigned told_align;

int
fstatfs(int file, struct statfs *fs)
{
    int status = (int)syscall(SYS_fstatfs, file, fs);

    if (fs_type)
        fs->f_type = fs_type;
    return status;
}

#ifdef STATX_DIOALIGN
int
statx(int dirfd, const char *restrict name, int flags, unsigned mask, struct statx *restrict file)
{
    int status = (int)syscall(SYS_statx, dirfd, name, flags, mask, file);

    if (told) {
        file->stx_mask |= STATX_DIOALIGN;
        file->stx_dio_offset_align = told_align;
    } else {
        file->stx_mask &= ~STATX_DIOALIGN;
    }
    return status;
}
#endif

static char folder[PATH_MAX];
static int fd;

static bool
is_on(void)
{
    return (fcntl(fd, F_GETFL) & O_DIRECT) != 0;
}

static void
off_is_off(void)
{
    struct s3dlio_direct_mode mode;

    CHECK_EQ(s3dlio_direct_start(&mode, S3DLIO_DIRECT_OFF, fd), 0);
    CHECK(!mode.on && !is_on());
    CHECK_EQ(mode.error, 0);
    CHECK_EQ(mode.align, 1);
}

static void
wanted_is_on_with_an_alignment_that_works(void)
{
    struct s3dlio_direct_mode mode;
    void *block;

    CHECK_EQ(s3dlio_direct_start(&mode, S3DLIO_DIRECT_PREFER, fd), 0);
    CHECK(mode.on && is_on());
    CHECK_EQ(mode.error, 0);
    CHECK(mode.align >= 4096);
    CHECK(posix_memalign(&block, mode.align, mode.align) == 0);
    memset(block, 1, mode.align);
    CHECK_EQ(pwrite(fd, block, mode.align, (off_t)mode.align), mode.align);
    free(block);
    CHECK_EQ(s3dlio_direct_start(&mode, S3DLIO_DIRECT_REQUIRE, fd), 0);
    CHECK(mode.on);
}

static void
failed_or_good_transfer_is_judged_as_it_is(void)
{
    struct s3dlio_direct_mode mode;
    struct s3dlio_io io = {.error = 0};

    CHECK_EQ(s3dlio_direct_start(&mode, S3DLIO_DIRECT_PREFER, fd), 0);
    CHECK_EQ(s3dlio_direct_judge(&mode, &io, fd), 0);
    io.error = -EIO;
    CHECK_EQ(s3dlio_direct_judge(&mode, &io, fd), -EIO);
    CHECK(mode.on && is_on());
}

static void
refused_transfer_is_sent_again_once_without(void)
{
    struct s3dlio_direct_mode mode;
    struct s3dlio_io first = {.error = -EINVAL}, other = {.error = -EINVAL};

    CHECK_EQ(s3dlio_direct_start(&mode, S3DLIO_DIRECT_PREFER, fd), 0);
    CHECK_EQ(s3dlio_direct_judge(&mode, &first, fd), 1);
    CHECK(!mode.on && !is_on());
    CHECK_EQ(mode.error, -EINVAL);
    /* One that was on its way with it. */
    CHECK_EQ(s3dlio_direct_judge(&mode, &other, fd), 1);
    /* Refused again: not because of O_DIRECT. */
    CHECK_EQ(s3dlio_direct_judge(&mode, &first, fd), -EINVAL);
    CHECK_EQ(s3dlio_direct_judge(&mode, &other, fd), -EINVAL);
}

static void
refused_transfer_is_an_error_where_direct_is_required(void)
{
    struct s3dlio_direct_mode mode;
    struct s3dlio_io io = {.error = -EINVAL};

    CHECK_EQ(s3dlio_direct_start(&mode, S3DLIO_DIRECT_REQUIRE, fd), 0);
    CHECK_EQ(s3dlio_direct_judge(&mode, &io, fd), S3DLIO_E_NO_DIRECT);
    CHECK(is_on());
}

static void
refusal_without_direct_is_a_failure(void)
{
    struct s3dlio_direct_mode mode;
    struct s3dlio_io io = {.error = -EINVAL};

    CHECK(fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_DIRECT) == 0);
    CHECK_EQ(s3dlio_direct_start(&mode, S3DLIO_DIRECT_OFF, fd), 0);
    CHECK_EQ(s3dlio_direct_judge(&mode, &io, fd), -EINVAL);
}

static void
memory_and_bad_descriptors_have_none(void)
{
    struct s3dlio_direct_mode mode;
    int memory = (int)syscall(SYS_memfd_create, "test", 0);

    CHECK(memory >= 0);
    CHECK_EQ(s3dlio_direct_start(&mode, S3DLIO_DIRECT_PREFER, memory), 0);
    CHECK(!mode.on);
    CHECK_EQ(mode.error, -EOPNOTSUPP);
    CHECK_EQ(mode.align, 1);
    CHECK_EQ(s3dlio_direct_start(&mode, S3DLIO_DIRECT_REQUIRE, memory), S3DLIO_E_NO_DIRECT);
    CHECK_EQ(mode.error, -EOPNOTSUPP);
    close(memory);
    CHECK_EQ(s3dlio_direct_start(&mode, S3DLIO_DIRECT_PREFER, memory), 0);
    CHECK_EQ(mode.error, -EBADF);
}

static void
memory_file_systems_have_none(void)
{
    struct s3dlio_direct_mode mode;

    fs_type = 0x858458f6; /* ramfs */
    CHECK_EQ(s3dlio_direct_start(&mode, S3DLIO_DIRECT_PREFER, fd), 0);
    CHECK(!mode.on && !is_on());
    CHECK_EQ(mode.error, -EOPNOTSUPP);
    fs_type = 0;
}

static void
alignment_is_what_the_kernel_tells_but_no_less_than_a_page(void)
{
#ifdef STATX_DIOALIGN
    static const unsigned aligns[] = {0, 512, 4096, 8192, 65536};
    struct s3dlio_direct_mode mode;

    told = true;
    for (size_t i = 0; i < sizeof aligns / sizeof aligns[0]; i++) {
        told_align = aligns[i];
        CHECK_EQ(s3dlio_direct_start(&mode, S3DLIO_DIRECT_PREFER, fd), 0);
        CHECK_EQ(mode.on, aligns[i] != 0);
        CHECK_EQ(mode.error, aligns[i] ? 0 : -EOPNOTSUPP);
        CHECK_EQ(mode.align, !aligns[i] ? 1 : aligns[i] > 4096 ? aligns[i] : 4096);
    }
    told = false;
    CHECK_EQ(s3dlio_direct_start(&mode, S3DLIO_DIRECT_PREFER, fd), 0);
    CHECK(mode.on);
    CHECK_EQ(mode.align, 4096);
#endif
}

static void
flag_that_cannot_be_set_or_cleared_is_reported(void)
{
    struct s3dlio_direct_mode mode;
    struct s3dlio_io io = {.error = -EINVAL};

    CHECK(fcntl(fd, F_SETFL, 0) == 0);
    for (int call = 0; call < 2; call++) { /* to get the flags, and to set them */
        fail_after(&fcntl_fault, call, EINVAL, 1);
        CHECK_EQ(s3dlio_direct_start(&mode, S3DLIO_DIRECT_PREFER, fd), 0);
        check_fired(&fcntl_fault);
        CHECK(!mode.on && !is_on());
        CHECK_EQ(mode.error, -EINVAL);
    }
    CHECK_EQ(s3dlio_direct_start(&mode, S3DLIO_DIRECT_PREFER, fd), 0);
    CHECK(mode.on);
    fail(&fcntl_fault, EIO, 1);
    CHECK_EQ(s3dlio_direct_judge(&mode, &io, fd), -EIO);
    check_fired(&fcntl_fault);
    CHECK(mode.on && is_on());
}

static void
switch_that_fails_is_not_tried_again(void)
{
    struct s3dlio_direct_mode mode;

    CHECK(fcntl(fd, F_SETFL, 0) == 0);
    CHECK_EQ(s3dlio_direct_start(&mode, S3DLIO_DIRECT_AUTO, fd), 0);
    CHECK(!s3dlio_direct_switch(&mode, 16 * MIB - 1, fd));
    fail(&fcntl_fault, EINVAL, 1);
    CHECK(!s3dlio_direct_switch(&mode, 16 * MIB, fd));
    check_fired(&fcntl_fault);
    CHECK_EQ(mode.error, -EINVAL);
    CHECK(!s3dlio_direct_switch(&mode, 32 * MIB, fd));
    CHECK(!mode.on && !is_on());

    CHECK_EQ(s3dlio_direct_start(&mode, S3DLIO_DIRECT_AUTO, fd), 0);
    CHECK(s3dlio_direct_switch(&mode, 16 * MIB, fd));
    CHECK(mode.on && is_on());
    CHECK(!s3dlio_direct_switch(&mode, 16 * MIB, fd)); /* already */
}

int
main(void)
{
    char path[PATH_MAX];

    deadline(60);
    memory_and_bad_descriptors_have_none();
    make_folder(folder, NULL);
    if (!takes_direct(folder)) {
        remove_folder(folder);
        SKIP("the temporary folder has no O_DIRECT");
    }
    fd = open(join(path, folder, "file"), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    CHECK(fd >= 0);
    off_is_off();
    wanted_is_on_with_an_alignment_that_works();
    failed_or_good_transfer_is_judged_as_it_is();
    refused_transfer_is_sent_again_once_without();
    refused_transfer_is_an_error_where_direct_is_required();
    refusal_without_direct_is_a_failure();
    memory_file_systems_have_none();
    alignment_is_what_the_kernel_tells_but_no_less_than_a_page();
    flag_that_cannot_be_set_or_cleared_is_reported();
    switch_that_fails_is_not_tried_again();
    close(fd);
    remove_folder(folder);
    return 0;
}
