/*
 * Copies a file past the page cache where that can be had, and says what it was: copy FROM TO
 *
 * TO is there, whole and durable, once the program has ended with 0.
 */
#include <cstdio>
#include <exception>

#include "s3dlio.hpp"

static void
copy(const char *from, const char *to)
{
    s3dlio_reader_options direct_reads = s3dlio::defaults<s3dlio_reader_options>();
    s3dlio_writer_options direct_writes = s3dlio::defaults<s3dlio_writer_options>();
    direct_reads.direct = S3DLIO_DIRECT_PREFER;
    direct_writes.direct = S3DLIO_DIRECT_PREFER;

    s3dlio::buffer room(8 << 20); // first, so that it goes last
    s3dlio::reader reader(from, direct_reads);
    s3dlio::writer writer(to, direct_writes);
    std::uint64_t offset = 0;
    while (std::size_t nbytes = reader.read(room, offset)) {
        writer.write(room.data(), nbytes);
        offset += nbytes;
    }
    writer.close();

    const s3dlio_writer_stats stats = writer.stats();
    std::printf("crc32c:%08lx %llu bytes\n", static_cast<unsigned long>(stats.raw_crc32c),
                static_cast<unsigned long long>(stats.raw_nbytes));
}

int
main(int argc, char **argv)
{
    if (argc != 3) {
        std::fprintf(stderr, "usage: copy FROM TO\n");
        return 2;
    }
    try {
        copy(argv[1], argv[2]);
    } catch (const std::exception &error) {
        std::fprintf(stderr, "copy: %s\n", error.what());
        return 1;
    }
    return 0;
}
