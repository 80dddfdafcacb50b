#include "s3dlio/version.h"

#define TEXT_OF(number)             #number
#define DOTTED(major, minor, patch) TEXT_OF(major) "." TEXT_OF(minor) "." TEXT_OF(patch)

const char *
s3dlio_version(void)
{
    return DOTTED(S3DLIO_VERSION_MAJOR, S3DLIO_VERSION_MINOR, S3DLIO_VERSION_PATCH);
}
