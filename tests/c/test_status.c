/* Every code has a sentence, and every sentence fits. */
#include "s3dlio/status.h"

#include "s3dlio/version.h"
#include "support.h"

static void
every_code_of_the_header_has_its_own_sentence(void)
{
    char texts[16][128];
    int n = 0;

    /* The codes lie one after the other; the first that is unknown ends them. */
    for (int code = S3DLIO_E_CORRUPT;; code--) {
        char unknown[128];

        CHECK(n < 16);
        CHECK(s3dlio_status_text(code, texts[n], sizeof texts[n]) == texts[n]);
        snprintf(unknown, sizeof unknown, "unknown code %d", code);
        if (strcmp(texts[n], unknown) == 0)
            break;
        CHECK(strlen(texts[n]) > 10 && strlen(texts[n]) < 127);
        for (int i = 0; i < n; i++)
            CHECK(strcmp(texts[i], texts[n]) != 0);
        n++;
    }
    CHECK_EQ(n, S3DLIO_E_CORRUPT - S3DLIO_E_RESERVED_NAME + 1);
}

static void
errno_codes_have_the_text_of_the_system(void)
{
    static const int errors[] = {ENOENT, EIO, ENOSPC, EAGAIN, ETIMEDOUT};
    char text[128];

    for (unsigned i = 0; i < sizeof errors / sizeof errors[0]; i++)
        CHECK(strcmp(s3dlio_status_text(-errors[i], text, sizeof text), strerror(errors[i])) == 0);
    CHECK(strcmp(s3dlio_status_text(0, text, sizeof text), "success") == 0);
}

static void
unknown_codes_are_named_by_their_number(void)
{
    static const int codes[] = {1, 12345, -4000, -4096, -10000, -20000, INT_MIN, INT_MAX};
    char text[128], number[32];

    for (unsigned i = 0; i < sizeof codes / sizeof codes[0]; i++) {
        snprintf(number, sizeof number, "unknown code %d", codes[i]);
        CHECK(strcmp(s3dlio_status_text(codes[i], text, sizeof text), number) == 0);
    }
}

/* The system's texts were replaced by "unknown code" when they did not fit. */
static void
text_is_cut_to_the_room_and_ends_with_zero(void)
{
    static const int codes[] = {0, -ENOENT, S3DLIO_E_CORRUPT, 77};

    for (unsigned i = 0; i < sizeof codes / sizeof codes[0]; i++) {
        char whole[128];

        s3dlio_status_text(codes[i], whole, sizeof whole);
        for (size_t room = 1; room < sizeof whole; room++) {
            char text[129];

            memset(text, '#', sizeof text);
            CHECK(s3dlio_status_text(codes[i], text, room) == text);
            CHECK(memchr(text, '\0', room));
            CHECK(strncmp(text, whole, room - 1) == 0);
            CHECK(text[room] == '#');
        }
    }
}

static void
version_is_that_of_the_header(void)
{
    char text[32];

    snprintf(text, sizeof text, "%d.%d.%d", S3DLIO_VERSION_MAJOR, S3DLIO_VERSION_MINOR,
             S3DLIO_VERSION_PATCH);
    CHECK(strcmp(s3dlio_version(), text) == 0);
}

int
main(void)
{
    every_code_of_the_header_has_its_own_sentence();
    errno_codes_have_the_text_of_the_system();
    unknown_codes_are_named_by_their_number();
    text_is_cut_to_the_room_and_ends_with_zero();
    version_is_that_of_the_header();
    return 0;
}
