/* libzstd's refusals, and the processors that are asked for. */
#include <pthread.h>
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
/* A parameter that libzstd takes and does not follow. */
static int ignored = -1;
static int nworkers;
static ZSTD_CCtx *last_context;

size_t
ZSTD_CCtx_setParameter(ZSTD_CCtx *context, ZSTD_cParameter parameter, int value)
{
    size_t (*real)(ZSTD_CCtx *, ZSTD_cParameter, int);

    last_context = context;
    if ((int)parameter == refused)
        return REFUSAL(refusal);
    if ((int)parameter == ignored)
        return 0;
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

FAULTY_RETURNING(pthread_create_fault.error, int, pthread_create,
                 (pthread_t * thread, const pthread_attr_t *attributes, void *(*run)(void *),
                  void *argument),
                 (thread, attributes, run, argument))

/* The encoder's context, among those of its threads; which thread freed it, and how often one was.
 */
static _Atomic(ZSTD_CCtx *) encoders;
static pthread_t freed_by;
static atomic_int nfreed;
/* Whether other threads than this wait before they free one. */
static atomic_bool held;
static pthread_t main_thread;

size_t
ZSTD_freeCCtx(ZSTD_CCtx *context)
{
    size_t (*real)(ZSTD_CCtx *);
    size_t result;

    while (held && !pthread_equal(pthread_self(), main_thread))
        sched_yield();
    *(void **)&real = find_next("ZSTD_freeCCtx");
    result = real(context);
    if (context == encoders) {
        freed_by = pthread_self();
        nfreed++;
    }
    return result;
}

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
refused_level_or_form_of_frame_is_an_error(void)
{
    static const int parameters[] = {ZSTD_c_compressionLevel, ZSTD_c_checksumFlag,
                                     ZSTD_c_contentSizeFlag};
    struct s3dlio_zstd_encoder *encoder = NULL;

    for (int i = 0; i < 3; i++) {
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

/* The mark would stand in the middle of something. */
static void
frame_with_another_header_is_an_error(void)
{
    static const int parameters[] = {ZSTD_c_checksumFlag, ZSTD_c_contentSizeFlag};
    unsigned char packed[100];

    for (int i = 0; i < 2; i++) {
        struct s3dlio_zstd_encoder *encoder = NULL;
        struct s3dlio_zstd_out out = {packed, sizeof packed, 0};

        ignored = parameters[i];
        CHECK_EQ(s3dlio_zstd_encoder_new(&encoder, 3, 0), 0);
        ignored = -1;
        CHECK_EQ(s3dlio_zstd_encoder_end(encoder, &out), S3DLIO_E_ZSTD);
        CHECK_EQ(out.pos, 0);
        s3dlio_zstd_encoder_free(encoder);
    }
}

static void
failing_compressor_is_an_error_in_write_and_end(void)
{
    static const struct {
        int error, status;
    } cases[] = {{ZSTD_error_GENERIC, S3DLIO_E_ZSTD}, {ZSTD_error_memory_allocation, -ENOMEM}};
    unsigned char packed[100];

    /* At the header of the frame, and, as the end makes two calls at least, behind it. */
    for (int i = 0; i < 6; i++) {
        struct s3dlio_zstd_encoder *encoder = NULL;
        struct s3dlio_zstd_in in = {"some bytes", 10, 0};
        struct s3dlio_zstd_out out = {packed, sizeof packed, 0};

        CHECK_EQ(s3dlio_zstd_encoder_new(&encoder, 3, 0), 0);
        fail_after(&ZSTD_compressStream2_fault, i / 4, cases[i % 2].error, 1);
        if (i / 2 == 0)
            CHECK_EQ(s3dlio_zstd_encoder_write(encoder, &in, &out), cases[i % 2].status);
        else
            CHECK_EQ(s3dlio_zstd_encoder_end(encoder, &out), cases[i % 2].status);
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

static bool
is_freed_here(int level, int workers, bool ended, bool forbidden)
{
    struct s3dlio_zstd_encoder *encoder = NULL;
    unsigned char *data = make_data(1 << 20, 1);
    unsigned char *packed = malloc(2 << 20);
    struct s3dlio_zstd_in in = {data, 1 << 20, 0};
    struct s3dlio_zstd_out out = {packed, 2 << 20, 0};
    int before = nfreed;

    CHECK_EQ(s3dlio_zstd_encoder_new(&encoder, level, workers), 0);
    encoders = last_context;
    CHECK_EQ(s3dlio_zstd_encoder_write(encoder, &in, &out), 0);
    if (ended)
        CHECK_EQ(s3dlio_zstd_encoder_end(encoder, &out), 0);
    if (forbidden)
        fail(&pthread_create_fault, EAGAIN, 1);
    s3dlio_zstd_encoder_free(encoder);
    if (forbidden)
        check_fired(&pthread_create_fault);
    while (nfreed == before)
        sched_yield();
    free(packed);
    free(data);
    return pthread_equal(freed_by, pthread_self());
}

/* It took as long as the threads of libzstd had work: minutes at level 22. */
static void
unfinished_encoder_with_slow_threads_is_freed_by_another_thread(void)
{
    CHECK(!is_freed_here(9, 2, false, false));
    CHECK(is_freed_here(9, 2, true, false));
    CHECK(is_freed_here(9, 0, false, false));
    CHECK(is_freed_here(3, 2, false, false));
    CHECK(is_freed_here(9, 2, false, true));
}

static void
no_more_than_two_are_freed_by_other_threads_at_a_time(void)
{
    struct s3dlio_zstd_encoder *encoders_of_two[2];

    held = true;
    for (int i = 0; i < 2; i++) {
        CHECK_EQ(s3dlio_zstd_encoder_new(&encoders_of_two[i], 9, 2), 0);
        s3dlio_zstd_encoder_free(encoders_of_two[i]);
    }
    CHECK(is_freed_here(9, 2, false, false));
    held = false;
    while (is_freed_here(9, 2, false, false))
        continue;
}

int
main(void)
{
    deadline(120);
    refused_level_or_form_of_frame_is_an_error();
    refused_threads_are_done_without();
    frame_with_another_header_is_an_error();
    failing_compressor_is_an_error_in_write_and_end();
    decoder_without_its_limit_is_not_made();
    unasked_workers_are_one_for_each_processor_and_no_more_than_16();
    main_thread = pthread_self();
    unfinished_encoder_with_slow_threads_is_freed_by_another_thread();
    no_more_than_two_are_freed_by_other_threads_at_a_time();
    return 0;
}
