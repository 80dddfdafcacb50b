/*
 * Space for a direct file, ahead of its writes.  ext4 allows only one write at a time that makes a
 * file longer, and waits for it (ext4_dio_write_iter()).
 */
#ifndef S3DLIO_RESERVE_H
#define S3DLIO_RESERVE_H

#include <stdbool.h>
#include <stdint.h>

/*
 * s3dlio_reserve() is told that the file will be written up to 'end'.  '*reserved' is how far space
 * is reserved, the caller's to keep; at first, where the file ends.
 *
 * Returns whether it tried to reserve: then the file may be longer than what is written, and is to
 * be cut at the end.  There is no failure: where there is no room for it, there may still be room
 * for the data.
 */
bool
s3dlio_reserve(uint64_t *reserved, uint64_t end, int fd);

#endif /* S3DLIO_RESERVE_H */
