/* Files written and read while memory runs out. */
#ifndef SWEEP_FILES_H
#define SWEEP_FILES_H

#include <zstd.h>

#include "s3dlio/reader.h"
#include "s3dlio/writer.h"
#include "sweep.h"

/* The writer, and faults that come to those of memory. */

static bool no_tmpfile, no_folder_sync;

int
openat(int dirfd, const char *path, int flags, ...)
{
    mode_t mode = 0;

    if (flags & (O_CREAT | O_TMPFILE)) {
        va_list rest;

        va_start(rest, flags);
        mode = va_arg(rest, mode_t);
        va_end(rest);
    }
    if (no_tmpfile && (flags & O_TMPFILE) == O_TMPFILE) {
        errno = EOPNOTSUPP;
        return -1;
    }
    return (int)syscall(SYS_openat, dirfd, path, flags, mode);
}

int
fsync(int fd)
{
    struct stat file;

    CHECK(fstat(fd, &file) == 0);
    errno = EIO;
    return no_folder_sync && S_ISDIR(file.st_mode) ? -1 : 0;
}

static int nentries;

static int
count_entry(const char *path, const struct stat *file, int kind, struct FTW *where)
{
    (void)path;
    (void)file;
    (void)kind;
    (void)where;
    nentries++;
    return 0;
}

static int
count_tree(void)
{
    nentries = 0;
    CHECK(nftw(folder, count_entry, 16, FTW_PHYS) == 0);
    return nentries;
}

static size_t
nbytes_of(const struct scenario *scenario)
{
    return scenario->empty ? 0 : NBYTES;
}

static bool
is_complete(const struct scenario *scenario, const char *path)
{
    static unsigned char unpacked[NBYTES + 1];
    unsigned char *file;
    size_t nbytes;
    bool same;

    if (!exists(path))
        return false;
    file = get_file(path, &nbytes);
    if (scenario->level)
        nbytes = ZSTD_decompress(unpacked, sizeof unpacked, file, nbytes);
    same = nbytes == nbytes_of(scenario) &&
           memcmp(scenario->level ? unpacked : file, data, nbytes) == 0;
    free(file);
    return same;
}

static struct s3dlio_writer_options
options_of(const struct scenario *scenario)
{
    return (struct s3dlio_writer_options){.struct_nbytes = sizeof(struct s3dlio_writer_options),
                                          .block_nbytes = BLOCK,
                                          .in_flight = 2,
                                          .direct = scenario->direct,
                                          .zstd_level = scenario->level,
                                          .zstd_workers = scenario->workers};
}

static int
write_file(const struct scenario *scenario, const char *path)
{
    struct s3dlio_writer_options options = options_of(scenario);
    struct s3dlio_writer *writer = NULL;
    size_t nbytes = nbytes_of(scenario), first = nbytes ? BLOCK + 1 : 0;
    int written, status;

    status = s3dlio_writer_open(&writer, path, &options);
    if (status)
        return status;
    written = s3dlio_writer_write(writer, data, first, NULL);
    if (!written && nbytes && s3dlio_writer_append(writer, data + first, 10) == 1)
        first += 10;
    if (!written)
        written = s3dlio_writer_write(writer, data + first, nbytes - first, NULL);
    status = s3dlio_writer_close(writer);
    expect(!written || status == written, "the first failure does not stick");
    s3dlio_writer_free(writer);
    return status;
}

static int
put_at_once(const struct scenario *scenario, const char *path)
{
    struct s3dlio_writer_options options = options_of(scenario);

    return s3dlio_writer_put(path, data, nbytes_of(scenario), &options);
}

static void
run_writer(const struct scenario *scenario)
{
    bool folders = scenario->place == FOLDERS || scenario->place == FAILING;
    bool replaces = scenario->place == REPLACED || scenario->place == LINKED;
    char path[PATH_MAX], link[PATH_MAX];
    int before, added, status;

    join(path, folder, folders ? "a/b/file" : "file");
    join(link, folder, "link");
    if (replaces)
        put_file(path, "before", 6);
    if (scenario->place == LINKED)
        CHECK(symlink("file", link) == 0);
    no_tmpfile = scenario->place == HIDDEN;
    no_folder_sync = scenario->place == FAILING;
    before = count_tree();

    allocations.on = true;
    status = scenario->write(scenario, scenario->place == LINKED ? link : path);
    allocations.on = false;

    no_tmpfile = no_folder_sync = false;
    expect_shortage_unless(status == (scenario->place == FAILING ? -EIO : 0), status);
    if (!status)
        expect(is_complete(scenario, path), "the new file is wrong");
    else
        expect(replaces ? holds(path, "before", 6) : !exists(path), "the old file is gone");
    added = status || replaces ? 0 : folders ? 3 : 1;
    expect(count_tree() == before + added, "something was left behind");
}

/* The reader. */

static void
read_range(struct s3dlio_reader *reader, size_t nbytes, uint64_t offset)
{
    static unsigned char buffer[NBYTES];
    uint32_t crc32c = 0;
    int64_t n = s3dlio_reader_read(reader, buffer, nbytes, offset, &crc32c);

    expect_shortage_unless(n == (int64_t)nbytes, n);
    if (n >= 0)
        expect(memcmp(buffer, data + offset, nbytes) == 0 &&
                   crc32c == slow_crc32c(0, data + offset, nbytes),
               "the bytes are wrong");
}

/* A read that failed says nothing about the next one. */
static void
run_reader(const struct scenario *scenario)
{
    struct s3dlio_reader_options options = {.struct_nbytes = sizeof options,
                                            .block_nbytes = BLOCK,
                                            .in_flight = 2,
                                            .direct = scenario->direct};
    struct s3dlio_reader *reader = NULL;
    char path[PATH_MAX];
    int status;

    put_file(join(path, folder, "file"), data, NBYTES);
    allocations.on = true;
    status = s3dlio_reader_open(&reader, path, &options);
    expect_shortage_unless(status == 0, status);
    if (!status) {
        read_range(reader, 1000, BLOCK - 1001);
        read_range(reader, NBYTES, 0);
        read_range(reader, 2 * BLOCK, 77);
    }
    s3dlio_reader_free(reader);
    allocations.on = false;
}

static const char *const engines[] = {NULL, "uring", "threads"};

/* Every mixture, or, as they take a while, a third of them, in which every two options meet. */
static void
sweep_writer(bool every)
{
    static const struct {
        int level, workers;
    } packings[] = {{0, 0}, {1, 0}, {3, 2}};

    for (unsigned i = 0; i < 3 * 3 * 2 * NPLACES; i++) {
        struct scenario scenario = {.run = run_writer,
                                    .write = write_file,
                                    .engine = engines[i % 3],
                                    .level = packings[i / 3 % 3].level,
                                    .workers = packings[i / 3 % 3].workers,
                                    .direct = i / 9 % 2 ? S3DLIO_DIRECT_PREFER : S3DLIO_DIRECT_OFF,
                                    .place = (enum place)(i / 18)};

        if (i % 4 == 3)
            scenario.write = put_at_once;
        scenario.empty = i % 5 == 4;
        if (!every && (i + i / 3 + i / 9) % 3 != 0)
            continue;
        if (i % 3 != 1 || has_uring())
            run_scenario(&scenario);
    }
}

static void
sweep_reader(void)
{
    for (unsigned i = 0; i < 3 * 2; i++) {
        struct scenario scenario = {.run = run_reader, .engine = engines[i % 3]};

        scenario.direct = i / 3 ? S3DLIO_DIRECT_PREFER : S3DLIO_DIRECT_OFF;
        if (i % 3 != 1 || has_uring())
            run_scenario(&scenario);
    }
}

#endif /* SWEEP_FILES_H */
