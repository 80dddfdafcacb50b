/*
 * What the fuzz targets share.  A target checks one property with CHECK(), which ends the process:
 * libFuzzer and replay.c both report that, with the input that led there.
 */
#ifndef FUZZ_H
#define FUZZ_H

#include "support.h" /* of tests/c */

#include "plant.h"

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t nbytes);

/* The input, as the numbers and bytes that the target asks for one after the other. */
struct input {
    const uint8_t *data;
    size_t nbytes;
};

/* 0 once the input has run out. */
HELPER unsigned
input_byte(struct input *input)
{
    if (input->nbytes == 0)
        return 0;
    input->nbytes--;
    return *input->data++;
}

/* 0 to 127 from one byte, up to 32767 from two. */
HELPER size_t
input_size(struct input *input)
{
    size_t size = input_byte(input);

    return size < 128 ? size : (size & 127) << 8 | input_byte(input);
}

/* Memory of exactly this size, so that AddressSanitizer sees a step past its end. */
HELPER void *
room_for(size_t nbytes)
{
    void *room = malloc(nbytes);

    CHECK(room || nbytes == 0);
    return room;
}

HELPER void *
copy_of(const void *data, size_t nbytes)
{
    void *copy = room_for(nbytes);

    if (nbytes > 0)
        memcpy(copy, data, nbytes);
    return copy;
}

/* Makes a long content of a short input, by repetition. */
HELPER unsigned char *
repeat(const uint8_t *data, size_t nbytes, size_t total_nbytes)
{
    unsigned char *content = room_for(total_nbytes);

    for (size_t at = 0; at < total_nbytes; at += nbytes) {
        size_t piece = total_nbytes - at < nbytes ? total_nbytes - at : nbytes;

        memcpy(content + at, data, piece);
    }
    return content;
}

#endif /* FUZZ_H */
