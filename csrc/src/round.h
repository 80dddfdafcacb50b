#ifndef S3DLIO_ROUND_H
#define S3DLIO_ROUND_H

#include <stddef.h>

/* 'multiple' need not be a power of two. */
static inline size_t
s3dlio_round_up(size_t nbytes, size_t multiple)
{
    return (nbytes + multiple - 1) / multiple * multiple;
}

#endif /* S3DLIO_ROUND_H */
