/* libzstd's refusals, and the processors that are asked for. */
#include <sched.h>
#include <zstd.h>
#include <zstd_errors.h>

#include "faults.h"
#include "s3dlio/status.h"
#include "s3dlio/zstd.h"

#define REFUSAL(code) ((size_t)-(code))

/* What libzstd says to the parameter 'refused'; 'nworkers' is what it was asked for. */
static int refused = -1;
static int refusal = ZSTD_error_parameter_unsupported;
static int nworkers;

size_t
ZSTD_CCtx_setParameter(ZSTD_CCtx *context, ZSTD_cParameter parameter, int value)
{
    size_t (*real)(ZSTD_CCtx *, ZSTD_cParameter, int);

    if ((int)parameter == refused)
        return REFUSAL(refusal);
    if (parameter == ZSTD_c_nbWorkers)
        nworkers = value;
    *(void **)&real = find_next("ZSTD_CCtx_setParameter");
    return real(context, parameter, value);
}

FAULTY_RETURNING(REFUSAL(ZSTD_error_parameter_unsupported), size_t, ZSTD_DCtx_setParameter,
                 (ZSTD_DCtx * context, ZSTD_dParameter parameter, int value),
                 (context, parameter, value))

FAULTY_RETURNING(REFUSAL(ZSTD_compressStream2_fault.error), size_t, ZSTD_compressStream2,
                 (ZSTD_CCtx * context, ZSTD_outBuffer *out, ZSTD_inBuffer *in,
                  ZSTD_EndDirective directive),
                 (context, out, in, directive))

/* 'nprocessors' for this process, or none known. */
static int nprocessors;

int
sched_getaffinity(pid_t pid, size_t nbytes, cpu_set_t *set)
{
    (void)pid;
    memset(set, 0, nbytes);
    for (int i = 0; i < nprocessors; i++)
        CPU_SET(i, set);
    errno = ENOSYS;
    return nprocessors ? 0 : -1;
}

static void
refused_level_or_checksum_is_an_error(void)
{
    static const int parameters[] = {ZSTD_c_compressionLevel, ZSTD_c_checksumFlag};
    struct s3dlio_zstd_encoder *encoder = NULL;

    for (int i = 0; i < 2; i++) {
        refused = parameters[i];
        refusal = ZSTD_error_parameter_unsupported;
        CHECK_EQ(s3dlio_zstd_encoder_new(&encoder, 3, 0), S3DLIO_E_ZSTD);
        refusal = ZSTD_error_memory_allocation;
        CHECK_EQ(s3dlio_zstd_encoder_new(&encoder, 3, 0), -ENOMEM);
    }
    refused = -1;
    CHECK(!encoder);
}

/* A libzstd without threads: a frame comes out all the same. */
static void
refused_threads_are_done_without(void)
{
    struct s3dlio_zstd_encoder *encoder = NULL;
    struct s3dlio_zstd_in in = {"some bytes", 10, 0};
    unsigned char packed[100], unpacked[100];
    struct s3dlio_zstd_out out = {packed, sizeof packed, 0};

    refused = ZSTD_c_nbWorkers;
    CHECK_EQ(s3dlio_zstd_encoder_new(&encoder, 3, 2), 0);
    refused = -1;
    CHECK_EQ(s3dlio_zstd_encoder_write(encoder, &in, &out), 0);
    CHECK_EQ(s3dlio_zstd_encoder_end(encoder, &out), 0);
    CHECK_EQ(ZSTD_decompress(unpacked, sizeof unpacked, packed, out.pos), 10);
    CHECK(memcmp(unpacked, "some bytes", 10) == 0);
    s3dlio_zstd_encoder_free(encoder);
}

static void
failing_compressor_is_an_error_in_write_and_end(void)
{
    static const struct {
        int error, status;
    } cases[] = {{ZSTD_error_GENERIC, S3DLIO_E_ZSTD}, {ZSTD_error_memory_allocation, -ENOMEM}};
    unsigned char packed[100];

    for (int i = 0; i < 4; i++) {
        struct s3dlio_zstd_encoder *encoder = NULL;
        struct s3dlio_zstd_in in = {"some bytes", 10, 0};
        struct s3dlio_zstd_out out = {packed, sizeof packed, 0};

        CHECK_EQ(s3dlio_zstd_encoder_new(&encoder, 3, 0), 0);
        fail(&ZSTD_compressStream2_fault, cases[i / 2].error, 1);
        if (i % 2)
            CHECK_EQ(s3dlio_zstd_encoder_write(encoder, &in, &out), cases[i / 2].status);
        else
            CHECK_EQ(s3dlio_zstd_encoder_end(encoder, &out), cases[i / 2].status);
        check_fired(&ZSTD_compressStream2_fault);
        s3dlio_zstd_encoder_free(encoder);
    }
}

static void
decoder_without_its_limit_is_not_made(void)
{
    struct s3dlio_zstd_decoder *decoder = NULL;

    fail(&ZSTD_DCtx_setParameter_fault, 0, 1);
    CHECK_EQ(s3dlio_zstd_decoder_new(&decoder), -ENOMEM);
    check_fired(&ZSTD_DCtx_setParameter_fault);
    CHECK(!decoder);
    s3dlio_zstd_decoder_free(NULL);
}

static int
workers_for(int processors, int asked)
{
    struct s3dlio_zstd_encoder *encoder = NULL;

    nprocessors = processors;
    nworkers = 0;
    CHECK_EQ(s3dlio_zstd_encoder_new(&encoder, 3, asked), 0);
    s3dlio_zstd_encoder_free(encoder);
    return nworkers;
}

static void
unasked_workers_are_one_for_each_processor_and_no_more_than_16(void)
{
    long online = sysconf(_SC_NPROCESSORS_ONLN);

    CHECK_EQ(workers_for(1, -1), 1);
    CHECK_EQ(workers_for(5, -1), 5);
    CHECK_EQ(workers_for(64, -1), 16);
    CHECK_EQ(workers_for(0, -1), online < 16 ? online : 16);
    CHECK_EQ(workers_for(64, 3), 3);
    CHECK_EQ(workers_for(64, 20), 20);
    CHECK_EQ(workers_for(64, 0), 0);
}

int
main(void)
{
    deadline(120);
    refused_level_or_checksum_is_an_error();
    refused_threads_are_done_without();
    failing_compressor_is_an_error_in_write_and_end();
    decoder_without_its_limit_is_not_made();
    unasked_workers_are_one_for_each_processor_and_no_more_than_16();
    return 0;
}
