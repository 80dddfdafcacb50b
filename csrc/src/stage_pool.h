/* The writer sends the stage's blocks to the kernel by their number in the pool. */
#ifndef S3DLIO_STAGE_POOL_H
#define S3DLIO_STAGE_POOL_H

#include "s3dlio/stage.h"

struct s3dlio_pool;

struct s3dlio_pool *
s3dlio_stage_pool(const struct s3dlio_stage *stage);

#endif /* S3DLIO_STAGE_POOL_H */
