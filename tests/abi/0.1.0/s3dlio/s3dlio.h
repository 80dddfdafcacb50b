/**
 * @file
 * libs3dlio moves large byte streams between memory and storage.  Include this header, or only
 * the ones that you need; each can stand alone.
 */
#ifndef S3DLIO_S3DLIO_H
#define S3DLIO_S3DLIO_H

#include "s3dlio/version.h"

#include "s3dlio/status.h"

#include "s3dlio/buffer.h"
#include "s3dlio/crc32c.h"
#include "s3dlio/zstd.h"

#include "s3dlio/direct.h"
#include "s3dlio/stage.h"

#include "s3dlio/writer.h"

#include "s3dlio/reader.h"

#endif /* S3DLIO_S3DLIO_H */
