/*
 * A kernel that does not let go of a transfer: after ten seconds its memory is left where it is,
 * and nothing else is.  The cases wait side by side.
 */
#include <pthread.h>
#include <stdatomic.h>

#include "engine.h"
#include "s3dlio/reader.h"
#include "s3dlio/status.h"
#include "s3dlio/writer.h"
#include "support.h"

#define BLOCK (64 * KIB)

static char folder[PATH_MAX];
static unsigned char *data;

/* While it is set, no transfer ends. */
static atomic_bool stuck;
static atomic_int nstuck;

static void
wait_until_let_go(void)
{
    nstuck++;
    while (stuck)
        sleep_ms(1);
    nstuck--;
}

ssize_t
pwrite(int fd, const void *from, size_t nbytes, off_t offset)
{
    wait_until_let_go();
    return syscall(SYS_pwrite64, fd, from, nbytes, offset);
}

ssize_t
pread(int fd, void *to, size_t nbytes, off_t offset)
{
    wait_until_let_go();
    return syscall(SYS_pread64, fd, to, nbytes, offset);
}

/* The threads end what they were given, in memory that must still be there. */
static void
let_go(void)
{
    stuck = false;
    while (nstuck > 0)
        sleep_ms(1);
    sleep_ms(20);
}

static void
check_ten_seconds(uint64_t begin_ms)
{
    CHECK(now_ms() - begin_ms >= 10000);
}

static void
ring_that_is_stuck_can_be_closed_later(void *argument)
{
    struct s3dlio_engine *engine = NULL;
    struct s3dlio_io io = {.kind = S3DLIO_IO_READ, .nbytes = 4, .needed = 4, .block = -1};
    char bytes[4] = "";
    uint64_t begin;
    int fds[2];

    (void)argument;
    if (!has_uring())
        return;
    CHECK(pipe2(fds, O_CLOEXEC) == 0);
    force_engine("uring");
    CHECK_EQ(s3dlio_engine_open(&engine, fds[0], 1, 1, NULL), 0);
    io.data = bytes;
    io.offset = (uint64_t)-1;
    CHECK_EQ(s3dlio_engine_submit(engine, &io), 0);
    begin = now_ms();
    CHECK_EQ(s3dlio_engine_close(engine), -ETIMEDOUT);
    check_ten_seconds(begin);
    CHECK_EQ(write(fds[1], "abcd", 4), 4);
    CHECK_EQ(s3dlio_engine_close(engine), 0);
    CHECK(memcmp(bytes, "abcd", 4) == 0);
}

static struct s3dlio_reader *
open_reader(int slice_ms, int timeout_ms)
{
    struct s3dlio_reader_options options = {.struct_nbytes = sizeof options,
                                            .block_nbytes = BLOCK,
                                            .in_flight = 2,
                                            .slice_ms = slice_ms,
                                            .timeout_ms = timeout_ms};
    struct s3dlio_reader *reader = NULL;
    char path[PATH_MAX];

    force_engine("threads");
    join(path, folder, "read");
    CHECK_EQ(s3dlio_reader_open(&reader, path, &options), 0);
    stuck = true;
    return reader;
}

static void
reader_that_is_stuck_works_again_after_a_cancel(void *argument)
{
    unsigned char *room = malloc(4 * BLOCK);
    struct s3dlio_reader *reader = open_reader(0, 1);
    uint64_t begin = now_ms();

    (void)argument;
    CHECK(room);
    CHECK_EQ(s3dlio_reader_read(reader, room, 4 * BLOCK, 0, NULL), -ETIMEDOUT);
    check_ten_seconds(begin);
    CHECK_EQ(s3dlio_reader_read(reader, room, 4 * BLOCK, 0, NULL), S3DLIO_E_CLOSED);
    let_go();
    CHECK_EQ(s3dlio_reader_cancel(reader), 0);
    CHECK_EQ(s3dlio_reader_read(reader, room, 4 * BLOCK, 0, NULL), 4 * BLOCK);
    CHECK(memcmp(room, data, 4 * BLOCK) == 0);
    s3dlio_reader_free(reader);
    free(room);
}

static void
reader_that_is_freed_while_stuck_is_left_allocated(void *argument)
{
    unsigned char *room = malloc(4 * BLOCK);
    struct s3dlio_reader *reader = open_reader(1, 0);
    int nfds = count_fds();
    uint64_t begin = now_ms();

    CHECK(room);
    CHECK_EQ(s3dlio_reader_read(reader, room, 4 * BLOCK, 0, NULL), -EAGAIN);
    if (argument) { /* with a cancel before */
        CHECK_EQ(s3dlio_reader_cancel(reader), -ETIMEDOUT);
        check_ten_seconds(begin);
        begin = now_ms();
        s3dlio_reader_free(reader);
        CHECK(now_ms() - begin < 9000);
    } else {
        s3dlio_reader_free(reader);
        check_ten_seconds(begin);
    }
    CHECK_EQ(count_fds(), nfds);
    let_go();
    free(room);
}

static void
writer_that_is_stuck_leaves_its_memory_and_no_name(void *argument)
{
    struct s3dlio_writer_options options = {
        .struct_nbytes = sizeof options, .block_nbytes = BLOCK, .in_flight = 2, .timeout_ms = 1};
    struct s3dlio_writer_stats stats;
    struct s3dlio_writer *writer = NULL;
    char path[PATH_MAX], name[PATH_MAX];
    uint64_t begin = now_ms();

    (void)argument;
    force_engine("threads");
    forbid_open_flag(O_TMPFILE, EOPNOTSUPP); /* so that there is a hidden name to remove */
    CHECK(mkdir(join(path, folder, "own"), 0777) == 0);
    join(name, path, "file");
    put_file(name, "before", 6);
    CHECK_EQ(s3dlio_writer_open(&writer, name, &options), 0);
    CHECK_EQ(count_entries(path), 2);
    stuck = true;
    CHECK_EQ(s3dlio_writer_write(writer, data, 4 * BLOCK, NULL), -ETIMEDOUT);
    check_ten_seconds(begin);
    CHECK_EQ(count_entries(path), 1);
    CHECK_EQ(s3dlio_writer_close(writer), -ETIMEDOUT);
    CHECK_EQ(s3dlio_writer_get_stats(writer, &stats, sizeof stats), 0);
    CHECK_EQ(stats.published, 0);
    s3dlio_writer_free(writer);
    let_go();
    CHECK(holds(name, "before", 6));
    CHECK_EQ(count_entries(path), 1);
}

int
main(void)
{
    static void (*const cases[])(void *) = {
        ring_that_is_stuck_can_be_closed_later,
        reader_that_is_stuck_works_again_after_a_cancel,
        reader_that_is_freed_while_stuck_is_left_allocated,
        reader_that_is_freed_while_stuck_is_left_allocated,
        writer_that_is_stuck_leaves_its_memory_and_no_name,
    };
    const unsigned n = sizeof cases / sizeof cases[0];
    char path[PATH_MAX];
    pid_t children[5];

    deadline(120);
    make_folder(folder, NULL);
    data = make_data(4 * BLOCK, 1);
    put_file(join(path, folder, "read"), data, 4 * BLOCK);
    for (unsigned i = 0; i < n; i++)
        children[i] = start_child(cases[i], i == 3 ? folder : NULL);
    for (unsigned i = 0; i < n; i++)
        CHECK_EQ(wait_for(children[i]), 0);
    free(data);
    remove_folder(folder);
    return 0;
}
