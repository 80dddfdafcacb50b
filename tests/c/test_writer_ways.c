/*
 * The writer's shorter and longer ways: small pieces, whole files in one call, and long files that
 * leave the page cache.
 */
#include "s3dlio/writer.h"

#include <signal.h>
#include <stdatomic.h>
#include <sys/resource.h>
#include <zstd.h>

#include "s3dlio/status.h"
#include "support.h"

#define BLOCK  (64 * KIB)
#define CACHED (16 * MIB) /* where S3DLIO_DIRECT_AUTO leaves the page cache (direct.h) */

static char folder[PATH_MAX];
static char path[PATH_MAX];

/* These definitions take the place of the C library's in this program. */

static atomic_int fsync_error, pwrite_error;
static atomic_bool refuse_direct;
static atomic_uint npwrite;

ssize_t
pwrite(int fd, const void *data, size_t nbytes, off_t offset)
{
    int error = pwrite_error;

    atomic_fetch_add(&npwrite, 1);
    if (refuse_direct && (fcntl(fd, F_GETFL) & O_DIRECT))
        error = EINVAL;
    if (error) {
        errno = error;
        return -1;
    }
    return syscall(SYS_pwrite64, fd, data, nbytes, offset);
}

int
fsync(int fd)
{
    if (fsync_error) {
        errno = fsync_error;
        return -1;
    }
    return (int)syscall(SYS_fsync, fd);
}

static struct s3dlio_writer_options
small_blocks(void)
{
    return (struct s3dlio_writer_options){.struct_nbytes = sizeof(struct s3dlio_writer_options),
                                          .block_nbytes = BLOCK,
                                          .in_flight = 3,
                                          .durability = S3DLIO_DURABILITY_NONE};
}

static bool
decodes_to(const void *data, size_t nbytes)
{
    size_t packed_nbytes;
    unsigned char *packed = get_file(path, &packed_nbytes);
    unsigned char *unpacked = malloc(nbytes + 1);
    bool same;

    CHECK(unpacked);
    same = ZSTD_decompress(unpacked, nbytes + 1, packed, packed_nbytes) == nbytes &&
           memcmp(unpacked, data, nbytes) == 0;
    free(packed);
    free(unpacked);
    return same;
}

static void
pieces_are_appended_while_they_fit_into_the_block(void)
{
    struct s3dlio_writer_options options = small_blocks();
    unsigned char *data = make_data(4 * BLOCK, 1);
    struct s3dlio_writer_stats stats;
    struct s3dlio_writer *writer;
    size_t nbytes = 3 * BLOCK + 100, done = 0, nappended = 0;

    CHECK_EQ(s3dlio_writer_open(&writer, path, &options), 0);
    CHECK_EQ(s3dlio_writer_append(writer, data, 10), 0); /* there is no block yet */
    while (done < nbytes) {
        size_t piece = nbytes - done < 1000 ? nbytes - done : 1000;

        if (s3dlio_writer_append(writer, data + done, piece))
            nappended++;
        else
            CHECK_EQ(s3dlio_writer_write(writer, data + done, piece, NULL), 0);
        done += piece;
    }
    /* All but the one that begins the first block, and those that fill one. */
    CHECK_EQ(nappended, (nbytes + 999) / 1000 - 4);
    CHECK_EQ(s3dlio_writer_append(writer, data, 0), 1);
    CHECK_EQ(s3dlio_writer_get_stats(writer, &stats, sizeof stats), 0);
    CHECK_EQ(stats.raw_nbytes, nbytes);
    CHECK_EQ(stats.raw_crc32c, slow_crc32c(0, data, nbytes));
    CHECK_EQ(s3dlio_writer_close(writer), 0);
    CHECK_EQ(s3dlio_writer_append(writer, data, 1), 0);
    s3dlio_writer_free(writer);
    CHECK(holds(path, data, nbytes));
    CHECK(unlink(path) == 0);
    free(data);
}

static void
append_takes_nothing_where_it_is_more_than_a_copy(void)
{
    struct s3dlio_writer_options options = small_blocks();
    unsigned char *data = make_data(5 * BLOCK, 2);
    struct s3dlio_writer *writer;

    options.zstd_level = 1;
    CHECK_EQ(s3dlio_writer_open(&writer, path, &options), 0);
    CHECK_EQ(s3dlio_writer_write(writer, data, 100, NULL), 0);
    CHECK_EQ(s3dlio_writer_append(writer, data, 1), 0);
    CHECK_EQ(s3dlio_writer_close(writer), 0);
    s3dlio_writer_free(writer);
    CHECK(decodes_to(data, 100));
    CHECK(unlink(path) == 0);

    options.zstd_level = 0;
    force_engine("threads");
    CHECK_EQ(s3dlio_writer_open(&writer, path, &options), 0);
    CHECK_EQ(s3dlio_writer_write(writer, data, 100, NULL), 0);
    CHECK_EQ(s3dlio_writer_append(writer, data, 1), 1);
    pwrite_error = ENOSPC;
    (void)s3dlio_writer_write(writer, data, 2 * BLOCK, NULL); /* it may fail already */
    CHECK_EQ(s3dlio_writer_close(writer), -ENOSPC);
    CHECK_EQ(s3dlio_writer_append(writer, data, 1), 0);
    pwrite_error = 0;
    s3dlio_writer_free(writer);
    force_engine(NULL);

    CHECK_EQ(s3dlio_writer_open(&writer, path, &options), 0);
    CHECK_EQ(s3dlio_writer_write(writer, data, 100, NULL), 0);
    s3dlio_writer_abort(writer);
    CHECK_EQ(s3dlio_writer_append(writer, data, 1), 0);
    s3dlio_writer_free(writer);
    CHECK_EQ(count_entries(folder), 0);
    free(data);
}

/* One file in one call, as three calls would make it. */
static void
put_one(const struct s3dlio_writer_options *options, const unsigned char *data, size_t nbytes)
{
    bool replaces = nbytes % 2 == 0;

    if (replaces)
        put_file(path, "before", 6);
    CHECK_EQ(s3dlio_writer_put(path, data, nbytes, options), 0);
    CHECK(options->zstd_level ? decodes_to(data, nbytes) : holds(path, data, nbytes));
    CHECK_EQ(count_entries(folder), 1);
    CHECK(unlink(path) == 0);
}

static void
put_stores_any_size_in_every_mode(void)
{
    const size_t sizes[] = {0, 1, 4095, 4096, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 5};
    const char *engines[] = {NULL, "threads", "uring"};
    unsigned char *data = make_data(4 * BLOCK, 3);

    for (int engine = 0; engine < 2 + has_uring(); engine++) {
        force_engine(engines[engine]);
        for (int mode = 0; mode < 24; mode++) {
            struct s3dlio_writer_options options = small_blocks();

            options.durability = (enum s3dlio_durability)(mode % 3);
            options.direct = (enum s3dlio_direct[]){S3DLIO_DIRECT_OFF, S3DLIO_DIRECT_PREFER,
                                                    S3DLIO_DIRECT_AUTO}[mode / 3 % 3];
            options.zstd_level = mode / 12;
            for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++)
                put_one(&options, data, sizes[i]);
        }
    }
    force_engine(NULL);
    free(data);
}

static void
put_goes_to_the_page_cache_without_a_copy(void)
{
    unsigned char *data = make_data(20 * BLOCK, 4);
    struct s3dlio_writer_options options = small_blocks();

    npwrite = 0;
    CHECK_EQ(s3dlio_writer_put(path, data, 16 * BLOCK, &options), 0); /* 1 MiB */
    CHECK_EQ(npwrite, 1);
    CHECK(holds(path, data, 16 * BLOCK));
    CHECK_EQ(s3dlio_writer_put(path, data, 20 * BLOCK, &options), 0);
    CHECK_EQ(npwrite, 3);
    CHECK(holds(path, data, 20 * BLOCK));
    CHECK(unlink(path) == 0);
    free(data);
}

static void
failure_of_a_block_that_the_caller_writes_sticks_and_leaves_the_old_file(void)
{
    unsigned char *data = make_data(4 * BLOCK, 6);
    struct s3dlio_writer_options options = small_blocks();
    struct s3dlio_writer *writer;
    size_t taken;

    put_file(path, "before", 6);
    CHECK_EQ(s3dlio_writer_open(&writer, path, &options), 0);
    CHECK_EQ(s3dlio_writer_write(writer, data, 2 * BLOCK, &taken), 0);
    pwrite_error = ENOSPC;
    CHECK_EQ(s3dlio_writer_write(writer, data, 2 * BLOCK, &taken), -ENOSPC);
    pwrite_error = 0;
    CHECK_EQ(s3dlio_writer_write(writer, data, 1, &taken), -ENOSPC);
    CHECK_EQ(s3dlio_writer_close(writer), -ENOSPC);
    s3dlio_writer_free(writer);
    CHECK(holds(path, "before", 6));
    CHECK_EQ(count_entries(folder), 1);
    CHECK(unlink(path) == 0);
    free(data);
}

static void
failed_put_leaves_nothing_and_keeps_the_old_file(void)
{
    struct s3dlio_writer_options options = small_blocks();
    char missing[PATH_MAX];

    options.durability = S3DLIO_DURABILITY_FULL;
    put_file(path, "before", 6);
    pwrite_error = ENOSPC;
    CHECK_EQ(s3dlio_writer_put(path, "after", 5, &options), -ENOSPC);
    pwrite_error = EAGAIN; /* for ever: not the one that says "call again" */
    CHECK_EQ(s3dlio_writer_put(path, "after", 5, &options), -EBUSY);
    pwrite_error = 0;
    fsync_error = EIO;
    CHECK_EQ(s3dlio_writer_put(path, "after", 5, &options), -EIO);
    fsync_error = 0;
    options.zstd_level = 99;
    CHECK_EQ(s3dlio_writer_put(path, "after", 5, &options), -EINVAL);
    options.zstd_level = 0;
    CHECK_EQ(s3dlio_writer_put(folder, "after", 5, &options), -EISDIR);
    CHECK_EQ(s3dlio_writer_put(NULL, "after", 5, &options), -EINVAL);
    options.no_parents = 1;
    CHECK_EQ(s3dlio_writer_put(join(missing, folder, "no/such"), "after", 5, &options), -ENOENT);
    CHECK(holds(path, "before", 6));
    CHECK_EQ(count_entries(folder), 1);
    CHECK(unlink(path) == 0);
}

/* Returns whether the file ended with O_DIRECT. */
static bool
write_auto(enum s3dlio_durability durability, const unsigned char *data, size_t nbytes,
           const char *file)
{
    struct s3dlio_writer_options options = {.struct_nbytes = sizeof options,
                                            .block_nbytes = MIB,
                                            .direct = S3DLIO_DIRECT_AUTO,
                                            .durability = durability};
    struct s3dlio_writer_stats stats;
    struct s3dlio_writer *writer;

    CHECK_EQ(s3dlio_writer_open(&writer, file, &options), 0);
    CHECK_EQ(s3dlio_writer_write(writer, data, nbytes, NULL), 0);
    CHECK_EQ(s3dlio_writer_close(writer), 0);
    CHECK_EQ(s3dlio_writer_get_stats(writer, &stats, sizeof stats), 0);
    CHECK_EQ(stats.raw_crc32c, slow_crc32c(0, data, nbytes));
    CHECK_EQ(stats.direct_error, refuse_direct && nbytes > CACHED ? -EINVAL : 0);
    s3dlio_writer_free(writer);
    CHECK(holds(file, data, nbytes));
    CHECK(unlink(file) == 0);
    return stats.direct;
}

static void
long_files_that_are_to_last_leave_the_page_cache(void)
{
    bool direct = takes_direct(folder);
    const char *engines[] = {"threads", "uring"};
    unsigned char *data = make_data(CACHED + 3 * MIB, 5);

    for (int engine = 0; engine < 1 + has_uring(); engine++) {
        force_engine(engines[engine]);
        for (size_t more = 0; more < 3 * MIB; more += MIB - 1) {
            bool last = CACHED + more > CACHED;

            CHECK_EQ(write_auto(S3DLIO_DURABILITY_FULL, data, CACHED + more, path), direct && last);
            CHECK_EQ(write_auto(S3DLIO_DURABILITY_DATA, data, CACHED + more, path), direct && last);
        }
        CHECK(!write_auto(S3DLIO_DURABILITY_NONE, data, CACHED + 3 * MIB, path));
        CHECK(!write_auto(S3DLIO_DURABILITY_FULL, data, CACHED - 1, path));
        if (direct && engine == 0) { /* the threads call pwrite() */
            refuse_direct = true;
            CHECK(!write_auto(S3DLIO_DURABILITY_FULL, data, CACHED + 2 * MIB + 7, path));
            refuse_direct = false;
        }
    }
    force_engine(NULL);
    free(data);
}

/* Space reserved ahead lengthened the file beyond the limit, and the signal ended the program. */
static void
write_just_below_the_limit(void *argument)
{
    const unsigned char *data = argument;
    struct s3dlio_writer_options options = small_blocks();
    struct rlimit limit = {5 * MIB, 5 * MIB};
    struct s3dlio_writer *writer;

    options.direct = S3DLIO_DIRECT_PREFER;
    CHECK(signal(SIGXFSZ, SIG_DFL) != SIG_ERR);
    CHECK(setrlimit(RLIMIT_FSIZE, &limit) == 0);
    CHECK_EQ(s3dlio_writer_open(&writer, path, &options), 0);
    CHECK_EQ(s3dlio_writer_write(writer, data, 5 * MIB - 1, NULL), 0);
    CHECK_EQ(s3dlio_writer_close(writer), 0);
    s3dlio_writer_free(writer);
}

static void
file_just_below_its_limit_is_written(void)
{
    unsigned char *data = make_data(5 * MIB, 7);

    in_child(write_just_below_the_limit, data);
    CHECK(holds(path, data, 5 * MIB - 1));
    CHECK(unlink(path) == 0);
    free(data);
}

static void
long_files_on_tmpfs_stay_where_they_are(void)
{
    unsigned char *data = make_data(CACHED + MIB, 6);
    char memory[PATH_MAX], file[PATH_MAX];
    struct statfs fs;

    if (statfs("/dev/shm", &fs) != 0 || fs.f_type != 0x01021994) {
        printf("SKIPPED in part: /dev/shm is no tmpfs\n");
    } else {
        make_folder(memory, "/dev/shm");
        CHECK(!write_auto(S3DLIO_DURABILITY_FULL, data, CACHED + MIB, join(file, memory, "file")));
        remove_folder(memory);
    }
    free(data);
}

int
main(void)
{
    int nfds;

    deadline(240);
    force_engine(NULL);
    make_folder(folder, NULL);
    join(path, folder, "file");
    nfds = count_fds();

    pieces_are_appended_while_they_fit_into_the_block();
    append_takes_nothing_where_it_is_more_than_a_copy();
    put_stores_any_size_in_every_mode();
    put_goes_to_the_page_cache_without_a_copy();
    failure_of_a_block_that_the_caller_writes_sticks_and_leaves_the_old_file();
    failed_put_leaves_nothing_and_keeps_the_old_file();
    long_files_that_are_to_last_leave_the_page_cache();
    file_just_below_its_limit_is_written();
    long_files_on_tmpfs_stay_where_they_are();

    CHECK_EQ(count_entries(folder), 0);
    CHECK_EQ(count_fds(), nfds);
    remove_folder(folder);
    return 0;
}
