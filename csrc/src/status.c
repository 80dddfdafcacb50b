/* strerror_r() with the POSIX signature; _GNU_SOURCE would give the other one. */
#define _POSIX_C_SOURCE 200809L

#include "s3dlio/status.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

static const struct {
    int code;
    const char *text;
} sentences[] = {
    {0, "success"},
    {S3DLIO_E_CORRUPT, "the data is damaged: a checksum differs, or it is no zstd frame"},
    {S3DLIO_E_TRUNCATED, "the data ends too early: it was cut off, or is still being written"},
    {S3DLIO_E_CLOSED, "already closed or aborted"},
    {S3DLIO_E_BUSY, "in use by another thread"},
    {S3DLIO_E_FORKED, "made by the parent process, and does not work after fork"},
    {S3DLIO_E_NO_DIRECT, "O_DIRECT was required but is not available here"},
    {S3DLIO_E_BAD_ENGINE, "S3DLIO_IO_ENGINE must be 'uring' or 'threads', and compiled in"},
    {S3DLIO_E_ZSTD, "the zstd library refused"},
    {S3DLIO_E_NOT_REGULAR, "exists and is not a regular file"},
    {S3DLIO_E_RESERVED_NAME, "names like '.name.s3dlio-0' are kept for files in the making"},
};

const char *
s3dlio_status_text(int code, char *text, size_t text_nbytes)
{
    for (size_t i = 0; i < sizeof sentences / sizeof sentences[0]; i++) {
        if (sentences[i].code == code) {
            snprintf(text, text_nbytes, "%s", sentences[i].text);
            return text;
        }
    }
    if (code < 0 && code >= -4095) {
        int error = strerror_r(-code, text, text_nbytes);

        if (error == 0 || error == ERANGE) /* the latter with the text cut */
            return text;
    }
    snprintf(text, text_nbytes, "unknown code %d", code);
    return text;
}
