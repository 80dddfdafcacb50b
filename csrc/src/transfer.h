/* What the writer's and the reader's transfers have in common: their sizes, and the waiting. */
#ifndef S3DLIO_TRANSFER_H
#define S3DLIO_TRANSFER_H

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "clock.h"

/* Fills in the defaults of the options of that name.  Returns 0, or -EINVAL out of range. */
static inline int
s3dlio_transfer_defaults(size_t *block_nbytes, unsigned *in_flight, int *timeout_ms)
{
    if (*block_nbytes == 0)
        *block_nbytes = (size_t)4 << 20;
    if (*in_flight == 0)
        *in_flight = 8;
    if (*timeout_ms == 0)
        *timeout_ms = 300000;
    if (*block_nbytes < (size_t)64 << 10 || *block_nbytes > (size_t)1 << 30)
        return -EINVAL;
    if (*in_flight > 1024 || *timeout_ms < 0)
        return -EINVAL;
    return 0;
}

/* How long one wait in the kernel lasts at most, before the clocks below are looked at. */
#define S3DLIO_WAIT_MS 100

/* When to return to the caller, and how long the device has kept it waiting without any progress.
 */
struct s3dlio_patience {
    uint64_t slice_end_ns;
    uint64_t waited_ns;
};

static inline void
s3dlio_patience_begin(struct s3dlio_patience *patience, int slice_ms)
{
    patience->slice_end_ns =
        slice_ms > 0 ? s3dlio_clock_ns() + (uint64_t)slice_ms * 1000000u : UINT64_MAX;
}

static inline bool
s3dlio_patience_slice_over(const struct s3dlio_patience *patience)
{
    return patience->slice_end_ns != UINT64_MAX && s3dlio_clock_ns() > patience->slice_end_ns;
}

/* Only waiting counts: a caller that comes back after an hour has not waited for that hour. */
static inline bool
s3dlio_patience_lost(const struct s3dlio_patience *patience, uint64_t timeout_ms)
{
    return patience->waited_ns > timeout_ms * 1000000u;
}

#endif /* S3DLIO_TRANSFER_H */
