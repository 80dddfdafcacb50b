/* Option structs start with their own size, so that fields can be added at their end. */
#ifndef S3DLIO_OPTIONS_H
#define S3DLIO_OPTIONS_H

#include <errno.h>
#include <stddef.h>
#include <string.h>

/*
 * Fills ours, of 'nbytes', from the caller's, which may be NULL or those of an older library.
 * Returns 0; -EINVAL when the size was not set; -E2BIG when a newer library's caller set a field
 * that this one does not know, which must not be ignored.
 */
static inline int
s3dlio_options_copy(void *ours, size_t nbytes, const void *theirs)
{
    size_t theirs_nbytes;

    memset(ours, 0, nbytes);
    if (!theirs)
        return 0;
    memcpy(&theirs_nbytes, theirs, sizeof theirs_nbytes);
    if (theirs_nbytes < sizeof theirs_nbytes)
        return -EINVAL;
    for (size_t i = nbytes; i < theirs_nbytes; i++) {
        if (((const unsigned char *)theirs)[i])
            return -E2BIG;
    }
    memcpy(ours, theirs, theirs_nbytes < nbytes ? theirs_nbytes : nbytes);
    return 0;
}

/* The other direction: as much of ours as the caller's struct of 'theirs_nbytes' has room for. */
static inline void
s3dlio_options_return(void *theirs, size_t theirs_nbytes, const void *ours, size_t nbytes)
{
    memset(theirs, 0, theirs_nbytes);
    memcpy(theirs, ours, theirs_nbytes < nbytes ? theirs_nbytes : nbytes);
}

#endif /* S3DLIO_OPTIONS_H */
