/*
 * Streams its input to a file, compressed, and says what it was:
 *
 *     cc stream.c -o stream $(pkg-config --cflags --libs s3dlio)
 *     tar -c /etc | ./stream etc.tar.zst
 *
 * The file is there, whole and durable, once the program has ended with 0; else what was there
 * before is still there.  C99 and C++ alike.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include <s3dlio/s3dlio.h>

static int
fail(const char *path, int status)
{
    char text[128];

    fprintf(stderr, "stream: %s: %s\n", path, s3dlio_status_text(status, text, sizeof text));
    return 1;
}

/* Returns 0 or the first failure; then the file does not appear. */
static int
copy(FILE *input, struct s3dlio_writer *writer)
{
    static unsigned char chunk[1 << 20];
    size_t nbytes;
    int status;

    while ((nbytes = fread(chunk, 1, sizeof chunk, input)) > 0) {
        status = s3dlio_writer_write(writer, chunk, nbytes, NULL);
        if (status != 0)
            return status;
    }
    return ferror(input) ? -EIO : s3dlio_writer_close(writer);
}

int
main(int argc, char **argv)
{
    struct s3dlio_writer_options options;
    struct s3dlio_writer_stats stats;
    struct s3dlio_writer *writer;
    int status;

    if (argc != 2) {
        fprintf(stderr, "usage: stream FILE <INPUT\n");
        return 2;
    }
    memset(&options, 0, sizeof options);
    options.struct_nbytes = sizeof options;
    options.zstd_level = S3DLIO_ZSTD_LEVEL_DEFAULT;
    status = s3dlio_writer_open(&writer, argv[1], &options);
    if (status != 0)
        return fail(argv[1], status);
    status = copy(stdin, writer);
    if (status == 0)
        status = s3dlio_writer_get_stats(writer, &stats, sizeof stats);
    s3dlio_writer_free(writer);
    if (status != 0)
        return fail(argv[1], status);
    printf("crc32c:%08" PRIx32 " %" PRIu64 " bytes, %" PRIu64 " stored\n", stats.raw_crc32c,
           stats.raw_nbytes, stats.stored_nbytes);
    return 0;
}
