/*
 * Every variant of CRC32C that this machine can run, against a reference that goes bit by bit.
 */
#include "s3dlio/crc32c.h"

#include "check.h"
#include "cpu.h"
#include "crc32c_impl.h"

#include <pthread.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define POLYNOMIAL  0x82f63b78u
#define DATA_NBYTES ((size_t)5 << 20)

static unsigned char *data;

/* prefix[n] is the checksum of the first n bytes of the data, by the reference. */
static uint32_t *prefix;

static uint64_t random_state = 1;

/* A linear congruential generator, of which the upper half is good enough. */
static uint32_t
random_number(void)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(random_state >> 32);
}

static uint64_t
random_long(void)
{
    return (uint64_t)random_number() << 32 | random_number();
}

static uint32_t
reference_byte(uint32_t crc, unsigned char byte)
{
    crc = ~crc ^ byte;
    for (int bit = 0; bit < 8; bit++)
        crc = crc & 1 ? crc >> 1 ^ POLYNOMIAL : crc >> 1;
    return ~crc;
}

static void
make_data(void)
{
    data = malloc(DATA_NBYTES);
    prefix = malloc((DATA_NBYTES + 1) * sizeof *prefix);
    CHECK(data && prefix);
    prefix[0] = 0;
    for (size_t i = 0; i < DATA_NBYTES; i++) {
        data[i] = (unsigned char)random_number();
        prefix[i + 1] = reference_byte(prefix[i], data[i]);
    }
}

static void
test_known_vectors(void)
{
    /* RFC 3720, B.4 */
    static const unsigned char read_command[48] = {
        [0] = 0x01,  [1] = 0xc0,  [16] = 0x14, [22] = 0x04,
        [27] = 0x14, [31] = 0x18, [32] = 0x28, [40] = 0x02,
    };
    unsigned char bytes[32];

    memset(bytes, 0, sizeof bytes);
    CHECK_EQ(s3dlio_crc32c(0, bytes, sizeof bytes), 0x8a9136aa);
    memset(bytes, 0xff, sizeof bytes);
    CHECK_EQ(s3dlio_crc32c(0, bytes, sizeof bytes), 0x62a8ab43);
    for (int i = 0; i < 32; i++)
        bytes[i] = (unsigned char)i;
    CHECK_EQ(s3dlio_crc32c(0, bytes, sizeof bytes), 0x46dd794e);
    for (int i = 0; i < 32; i++)
        bytes[i] = (unsigned char)(31 - i);
    CHECK_EQ(s3dlio_crc32c(0, bytes, sizeof bytes), 0x113fdb5c);
    CHECK_EQ(s3dlio_crc32c(0, read_command, sizeof read_command), 0xd9963a56);

    CHECK_EQ(s3dlio_crc32c(0, "123456789", 9), 0xe3069283);
    CHECK_EQ(s3dlio_crc32c(0, "hello world", 11), 0xc99465aa);
}

static void
test_nothing_leaves_the_checksum(void)
{
    CHECK_EQ(s3dlio_crc32c(0, NULL, 0), 0);
    CHECK_EQ(s3dlio_crc32c(0xdeadbeef, NULL, 0), 0xdeadbeef);
    CHECK_EQ(s3dlio_crc32c(0xdeadbeef, data, 0), 0xdeadbeef);
}

static void
test_every_short_length_at_every_offset(void)
{
    for (size_t offset = 0; offset < 64; offset++) {
        uint32_t start = offset % 2 ? random_number() : 0;
        uint32_t expected = start;

        for (size_t nbytes = 0; nbytes <= 1024; nbytes++) {
            CHECK_EQ(s3dlio_crc32c(start, data + offset, nbytes), expected);
            expected = reference_byte(expected, data[offset + nbytes]);
        }
    }
}

static void
check_around(size_t nbytes)
{
    if (nbytes > 0)
        CHECK_EQ(s3dlio_crc32c(0, data, nbytes - 1), prefix[nbytes - 1]);
    CHECK_EQ(s3dlio_crc32c(0, data, nbytes), prefix[nbytes]);
    CHECK_EQ(s3dlio_crc32c(0, data, nbytes + 1), prefix[nbytes + 1]);
}

/* Folding goes by 64 and 256 bytes; three streams go by up to three blocks of each length. */
static void
test_lengths_around_block_boundaries(void)
{
    for (size_t nbytes = 0; nbytes <= 16384; nbytes += 64)
        check_around(nbytes);
    for (int counts = 0; counts < 1 << 2 * S3DLIO_CRC32C_SPLIT_COUNT; counts++) {
        size_t nbytes = 0;

        for (int i = 0; i < S3DLIO_CRC32C_SPLIT_COUNT; i++)
            nbytes += 3 * s3dlio_crc32c_splits[i].stream_nbytes * (size_t)(counts >> 2 * i & 3);
        check_around(nbytes);
    }
}

/* The checksum of what comes before is a starting value other than 0. */
static void
test_long_pieces_continue_the_checksum_before(void)
{
    CHECK_EQ(s3dlio_crc32c(0, data, DATA_NBYTES), prefix[DATA_NBYTES]);
    for (int i = 0; i < 40; i++) {
        size_t end = random_number() % (DATA_NBYTES + 1);
        size_t start = random_number() % (end + 1);

        CHECK_EQ(s3dlio_crc32c(prefix[start], data + start, end - start), prefix[end]);
    }
}

static void
test_any_split_gives_the_checksum_of_the_whole(void)
{
    for (unsigned limit = 1; limit <= 1u << 20; limit *= 4) {
        size_t whole_nbytes = limit < 4096 ? 50000 : DATA_NBYTES;
        size_t done = 0;
        uint32_t crc = 0;

        while (done < whole_nbytes) {
            size_t nbytes = random_number() % (limit + 1);

            if (nbytes > whole_nbytes - done)
                nbytes = whole_nbytes - done;
            crc = s3dlio_crc32c(crc, data + done, nbytes);
            done += nbytes;
        }
        CHECK_EQ(crc, prefix[whole_nbytes]);
    }
}

static void
check_between_guards(unsigned char *first, size_t room_nbytes, size_t nbytes)
{
    CHECK(nbytes <= room_nbytes);
    CHECK_EQ(s3dlio_crc32c(0, first, nbytes), prefix[nbytes]);
    CHECK_EQ(s3dlio_crc32c(prefix[room_nbytes - nbytes], first + room_nbytes - nbytes, nbytes),
             prefix[room_nbytes]);
}

/* The pages before and after the data kill the program at the first byte that is read. */
static void
test_reads_nothing_outside_the_buffer(void)
{
    const struct s3dlio_crc32c_split *split = s3dlio_crc32c_splits;
    size_t page_nbytes = (size_t)sysconf(_SC_PAGESIZE);
    size_t room_nbytes = (3 * split[0].stream_nbytes / page_nbytes + 2) * page_nbytes;
    size_t map_nbytes = room_nbytes + 2 * page_nbytes;
    unsigned char *map = mmap(NULL, map_nbytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    unsigned char *first = map + page_nbytes;

    CHECK(map != MAP_FAILED);
    CHECK_EQ(mprotect(first, room_nbytes, PROT_READ | PROT_WRITE), 0);
    memcpy(first, data, room_nbytes);
    for (size_t nbytes = 0; nbytes <= 1100; nbytes++)
        check_between_guards(first, room_nbytes, nbytes);
    for (int i = 0; i < S3DLIO_CRC32C_SPLIT_COUNT; i++) {
        for (size_t more = 0; more <= 80; more++)
            check_between_guards(first, room_nbytes, 3 * split[i].stream_nbytes + more);
    }
    CHECK_EQ(munmap(map, map_nbytes), 0);
}

#define COPY_NBYTES ((size_t)70 << 10)

/* The bytes arrive, those beside them stay as they are, and the checksum is theirs. */
static void
check_copy(unsigned char *room, size_t to, size_t from, size_t nbytes)
{
    uint32_t start = prefix[from];
    unsigned char *copied = room + 64 + to;

    CHECK(to <= 64 && nbytes <= COPY_NBYTES);
    memset(room, 0xa5, COPY_NBYTES + 192);
    CHECK_EQ(s3dlio_crc32c_copy(start, copied, data + from, nbytes), prefix[from + nbytes]);
    CHECK(memcmp(copied, data + from, nbytes) == 0);
    for (size_t i = 0; i < 64; i++) {
        CHECK_EQ(copied[-1 - (long)i], 0xa5);
        CHECK_EQ(copied[nbytes + i], 0xa5);
    }
}

static void
test_copy_checksums_what_it_stores(void)
{
    unsigned char *room = malloc(COPY_NBYTES + 192);

    CHECK(room);
    for (size_t to = 0; to <= 64; to += to < 2 ? 1 : 31) {
        for (size_t nbytes = 0; nbytes <= 600; nbytes++)
            check_copy(room, to, nbytes % 5, nbytes);
        for (size_t nbytes = 4096 - 70; nbytes <= 4096 + 330; nbytes++)
            check_copy(room, to, nbytes % 64, nbytes);
    }
    for (int i = 0; i < 200; i++)
        check_copy(room, random_number() % 65, random_number() % 100,
                   random_number() % (COPY_NBYTES + 1));
    check_copy(room, 0, 0, COPY_NBYTES);
    free(room);
}

/* Appending zeros is a linear map of the 32 bits: columns[i] is what becomes of bit i. */
struct zeros {
    uint32_t columns[32];
};

static uint32_t
append(const struct zeros *zeros, uint32_t crc)
{
    uint32_t result = 0;

    for (int i = 0; i < 32; i++) {
        if (crc >> i & 1)
            result ^= zeros->columns[i];
    }
    return result;
}

static void
make_one_zero(struct zeros *zeros)
{
    for (int i = 0; i < 32; i++)
        zeros->columns[i] = ~reference_byte(~((uint32_t)1 << i), 0);
}

static void
twice(struct zeros *zeros)
{
    struct zeros once = *zeros;

    for (int i = 0; i < 32; i++)
        zeros->columns[i] = append(&once, once.columns[i]);
}

/* By repeated doubling, which shares nothing with the library's way. */
static uint32_t
reference_combine(uint32_t crc1, uint32_t crc2, uint64_t nbytes2)
{
    struct zeros zeros;

    for (make_one_zero(&zeros); nbytes2 != 0; nbytes2 >>= 1, twice(&zeros)) {
        if (nbytes2 & 1)
            crc1 = append(&zeros, crc1);
    }
    return crc1 ^ crc2;
}

static void
check_combine(size_t middle, size_t end)
{
    uint32_t crc2 = s3dlio_crc32c(0, data + middle, end - middle);

    CHECK_EQ(s3dlio_crc32c_combine(prefix[middle], crc2, end - middle), prefix[end]);
}

static void
test_combine_gives_the_checksum_of_the_whole(void)
{
    for (size_t nbytes = 1; nbytes <= DATA_NBYTES - 2; nbytes *= 2) {
        check_combine(1, nbytes);
        check_combine(1, nbytes + 1);
        check_combine(1, nbytes + 2);
        check_combine(nbytes, DATA_NBYTES);
    }
    for (int i = 0; i < 40; i++) {
        size_t end = random_number() % (DATA_NBYTES + 1);

        check_combine(random_number() % (end + 1), end);
    }
}

static void
test_combine_with_nothing_changes_nothing(void)
{
    CHECK_EQ(s3dlio_crc32c_combine(0, 0, 0), 0);
    CHECK_EQ(s3dlio_crc32c_combine(0xdeadbeef, 0, 0), 0xdeadbeef);
    CHECK_EQ(s3dlio_crc32c_combine(0, 0xdeadbeef, 12345), 0xdeadbeef);
    CHECK_EQ(s3dlio_crc32c_combine(0, 0xdeadbeef, UINT64_MAX), 0xdeadbeef);
    check_combine(0, 0);
    check_combine(0, 1000);
    check_combine(1000, 1000);
}

static void
check_combine_long(uint64_t nbytes2)
{
    uint32_t crc1 = random_number(), crc2 = random_number();

    CHECK_EQ(s3dlio_crc32c_combine(crc1, crc2, nbytes2), reference_combine(crc1, crc2, nbytes2));
}

static void
test_combine_when_longer_than_memory_agrees_with_doubling(void)
{
    for (int shift = 0; shift < 64; shift++) {
        uint64_t nbytes2 = (uint64_t)1 << shift;

        check_combine_long(nbytes2 - 1);
        check_combine_long(nbytes2);
        check_combine_long(nbytes2 + 1);
        check_combine_long(random_long() >> shift);
    }
    check_combine_long(UINT64_MAX);

    /* Where the powers of x start again. */
    check_combine_long(0x7ffffffeu);
    check_combine_long(0x7fffffffu);
    check_combine_long(0x80000000u);
}

static void
test_combine_when_longer_than_memory_is_associative(void)
{
    for (int i = 0; i < 1000; i++) {
        uint32_t a = random_number(), b = random_number(), c = random_number();
        uint64_t b_nbytes = random_long() >> 2, c_nbytes = random_long() >> 2;

        CHECK_EQ(
            s3dlio_crc32c_combine(s3dlio_crc32c_combine(a, b, b_nbytes), c, c_nbytes),
            s3dlio_crc32c_combine(a, s3dlio_crc32c_combine(b, c, c_nbytes), b_nbytes + c_nbytes));
    }
}

static void *
call_from_thread(void *expected_name)
{
    CHECK_EQ(s3dlio_crc32c(0, data, 5000), prefix[5000]);
    CHECK_EQ(strcmp(s3dlio_crc32c_variant(), expected_name), 0);
    return NULL;
}

static void
test_first_call_from_many_threads_at_once(const char *expected_name)
{
    for (int round = 0; round < 20; round++) {
        pthread_t threads[8];

        s3dlio_crc32c_rebind_for_tests();
        for (int i = 0; i < 8; i++)
            CHECK_EQ(pthread_create(&threads[i], NULL, call_from_thread, (void *)expected_name), 0);
        for (int i = 0; i < 8; i++)
            CHECK_EQ(pthread_join(threads[i], NULL), 0);
    }
}

/* What is bound when these features are present and those are hidden. */
struct binding {
    const char *name;
    unsigned present;
    unsigned hidden;
};

static bool
hide_and_bind(const struct binding *binding)
{
    s3dlio_cpu_hide_for_tests(0);
    if ((s3dlio_cpu_features() & binding->present) != binding->present) {
        printf("SKIPPED: %s, features 0x%x: not in this processor\n", binding->name,
               binding->present);
        return false;
    }
    s3dlio_cpu_hide_for_tests(binding->hidden);
    s3dlio_crc32c_rebind_for_tests();
    CHECK_EQ(s3dlio_cpu_features() & binding->hidden, 0);
    CHECK_EQ(strcmp(s3dlio_crc32c_variant(), binding->name), 0);
    return true;
}

#if defined(__x86_64__)
#define SSE42_NEEDS  (S3DLIO_CPU_SSE42 | S3DLIO_CPU_PCLMUL)
#define AVX512_NEEDS (S3DLIO_CPU_AVX512 | S3DLIO_CPU_VPCLMULQDQ | SSE42_NEEDS)

static const struct binding kernels[] = {
    {"avx512-vpclmulqdq", AVX512_NEEDS, 0},
    {"sse42-pclmul", SSE42_NEEDS, S3DLIO_CPU_AVX512},
    {"portable", 0, S3DLIO_CPU_SSE42},
};
static const struct binding fall_backs[] = {
    {"sse42-pclmul", SSE42_NEEDS, S3DLIO_CPU_VPCLMULQDQ},
    {"portable", 0, S3DLIO_CPU_PCLMUL},
    {"portable", 0, AVX512_NEEDS},
};
#elif defined(__aarch64__) && !defined(__AARCH64EB__)
#define PMULL_NEEDS (S3DLIO_CPU_ARM_CRC32 | S3DLIO_CPU_ARM_PMULL)

static const struct binding kernels[] = {
    {"armv8-crc", PMULL_NEEDS, 0},
    {"armv8-crc", S3DLIO_CPU_ARM_CRC32, S3DLIO_CPU_ARM_PMULL},
    {"portable", 0, S3DLIO_CPU_ARM_CRC32},
};
static const struct binding fall_backs[] = {
    {"portable", 0, PMULL_NEEDS},
};
#else
static const struct binding kernels[] = {{"portable", 0, 0}};
static const struct binding fall_backs[] = {{"portable", 0, 0}};
#endif

static void
test_every_kernel_this_processor_can_run(void)
{
    for (size_t i = 0; i < sizeof kernels / sizeof kernels[0]; i++) {
        if (!hide_and_bind(&kernels[i]))
            continue;
        test_known_vectors();
        test_nothing_leaves_the_checksum();
        test_every_short_length_at_every_offset();
        test_lengths_around_block_boundaries();
        test_long_pieces_continue_the_checksum_before();
        test_any_split_gives_the_checksum_of_the_whole();
        test_reads_nothing_outside_the_buffer();
        test_copy_checksums_what_it_stores();
        test_combine_gives_the_checksum_of_the_whole();
        test_first_call_from_many_threads_at_once(kernels[i].name);
    }
}

static void
test_when_a_feature_is_missing_the_next_kernel_is_bound(void)
{
    for (size_t i = 0; i < sizeof fall_backs / sizeof fall_backs[0]; i++) {
        if (hide_and_bind(&fall_backs[i]))
            test_known_vectors();
    }
}

int
main(void)
{
    make_data();
    test_every_kernel_this_processor_can_run();
    test_when_a_feature_is_missing_the_next_kernel_is_bound();
    test_combine_with_nothing_changes_nothing();
    test_combine_when_longer_than_memory_agrees_with_doubling();
    test_combine_when_longer_than_memory_is_associative();
    free(data);
    free(prefix);
    return 0;
}
