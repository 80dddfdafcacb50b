/* Time for waits: monotonic, so that a set clock neither shortens nor lengthens them. */
#ifndef S3DLIO_CLOCK_H
#define S3DLIO_CLOCK_H

#include <stdint.h>
#include <time.h>

static inline uint64_t
s3dlio_clock_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* The moment 'wait_ms' from now, for pthread_cond_timedwait() on a CLOCK_MONOTONIC condition. */
static inline struct timespec
s3dlio_clock_in_ms(int wait_ms)
{
    struct timespec then;

    clock_gettime(CLOCK_MONOTONIC, &then);
    then.tv_sec += wait_ms / 1000;
    then.tv_nsec += (long)(wait_ms % 1000) * 1000000;
    if (then.tv_nsec >= 1000000000) {
        then.tv_sec++;
        then.tv_nsec -= 1000000000;
    }
    return then;
}

#endif /* S3DLIO_CLOCK_H */
