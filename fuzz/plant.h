/*
 * Planted faults: with S3DLIO_FUZZ_PLANT each target is given a library that breaks its promise now
 * and then, and must find out.  scripts/fuzz looks that it does.
 */
#ifndef PLANT_H
#define PLANT_H

#ifdef S3DLIO_FUZZ_PLANT
#include "s3dlio/crc32c.h"
#include "s3dlio/stage.h"
#include "s3dlio/status.h"
#include "s3dlio/writer.h"
#include "s3dlio/zstd.h"

/* Flips a bit of the content where a read gave five bytes. */
HELPER int
planted_decoder_read(struct s3dlio_zstd_decoder *decoder, struct s3dlio_zstd_in *in,
                     struct s3dlio_zstd_out *out)
{
    size_t before = out->pos;
    int status = s3dlio_zstd_decoder_read(decoder, in, out);

    if (out->pos - before == 5)
        ((unsigned char *)out->data)[before + 4] ^= 1;
    return status;
}

/* Leaves out a byte of some pieces. */
HELPER int
planted_encoder_write(struct s3dlio_zstd_encoder *encoder, struct s3dlio_zstd_in *in,
                      struct s3dlio_zstd_out *out)
{
    if (in->nbytes - in->pos == 7)
        in->pos++;
    return s3dlio_zstd_encoder_write(encoder, in, out);
}

/* Numbers the fourth block like the third. */
HELPER int
planted_stage_take(struct s3dlio_stage *stage, struct s3dlio_block *block_ret)
{
    int status = s3dlio_stage_take(stage, block_ret);

    if (status == 0 && block_ret->index == 3)
        block_ret->index = 2;
    return status;
}

/* Wrong for one length at odd addresses. */
HELPER uint32_t
planted_crc32c(uint32_t crc, const void *data, size_t nbytes)
{
    return s3dlio_crc32c(crc, data, nbytes) ^ (nbytes == 9 && (uintptr_t)data % 2);
}

/* Publishes what should be dropped. */
HELPER void
planted_writer_abort(struct s3dlio_writer *writer)
{
    (void)s3dlio_writer_close(writer);
}

#define s3dlio_zstd_decoder_read  planted_decoder_read
#define s3dlio_zstd_encoder_write planted_encoder_write
#define s3dlio_stage_take         planted_stage_take
#define s3dlio_crc32c             planted_crc32c
#define s3dlio_writer_abort       planted_writer_abort
#endif

#endif /* PLANT_H */
