/*
 * Hidden names of files in the making: '.name.s3dlio-0', '.name.s3dlio-1', ... beside 'name'. Their
 * owner holds a lock (flock(2)) on them, so that the next writer of that name can tell one that a
 * killed process left behind, and removes it.
 */
#ifndef S3DLIO_HIDDEN_H
#define S3DLIO_HIDDEN_H

#include <limits.h>
#include <stdbool.h>

/* Writers of one name that may stand between link and rename at the same moment, or, without
 * O_TMPFILE, that may be open at once. */
#define S3DLIO_HIDDEN_SLOTS 100

/* Makes number 'slot' of the hidden names of 'name'. */
void
s3dlio_hidden_name(const char *name, unsigned slot, char hidden[NAME_MAX + 1]);

/* Whether 'name' has the form of a hidden name: it would be taken for an abandoned file. */
bool
s3dlio_hidden_is_reserved(const char *name);

/* Returns 1 if 'hidden' in 'dirfd' is still the file that 'fd' is, 0 if not, or -errno where the
 * system does not tell. */
int
s3dlio_hidden_is(int fd, int dirfd, const char *hidden);

/* Removes a hidden name if nobody holds its lock.  Returns whether the name is free now. */
bool
s3dlio_hidden_sweep(int dirfd, const char *hidden);

/* Removes what killed writers of 'name' left: from the first name on, up to a few free
 * ones.  'own' is the caller's name, which it may not have been able to lock, or "". */
void
s3dlio_hidden_sweep_all(int dirfd, const char *name, const char *own);

#endif /* S3DLIO_HIDDEN_H */
