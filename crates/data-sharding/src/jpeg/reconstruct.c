/* Runs libjpeg-turbo's decoder behind the entropy decoding: dequantisation, inverse transform, upsampling, colour.
 *
 * The coefficients come from a callback that takes the place of the library's Huffman decoder. So the JPEG given
 * here needs no entropy-coded data: its headers say what image the coefficients make. The library offers no public
 * way to do this. The structure that holds its decoder's entry points is declared in its internal header
 * jpegint.h; what is used of it, the second entry, has not moved since 1991. */

#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <jpeglib.h>

#if LIBJPEG_TURBO_VERSION_NUMBER < 3000000 || LIBJPEG_TURBO_VERSION_NUMBER >= 4000000
#error "compare struct jpeg_entropy_decoder in jpegint.h with entropy_entries below"
#endif

struct entropy_entries {
  void (*start_pass)(j_decompress_ptr decoder);
  boolean (*decode_mcu)(j_decompress_ptr decoder, JBLOCKROW *blocks);
};

/* Fills the `count` blocks at `blocks`, which are zero, with the next MCU's coefficients. */
typedef void (*fill_mcu)(void *source, JCOEF *blocks, int count);

struct reconstructor {
  struct jpeg_decompress_struct decoder;
  struct jpeg_error_mgr errors;
  jmp_buf escape;
  fill_mcu fill;
  void *source;
};

static void escape(j_common_ptr decoder)
{
  longjmp(((struct reconstructor *)decoder->client_data)->escape, 1);
}

/* There is nothing to warn of in headers of our own: whatever it is, it must not become pixels. */
static void warn(j_common_ptr decoder, int level)
{
  if (level < 0)
    escape(decoder);
}

static void keep_silent(j_common_ptr decoder)
{
  (void)decoder;
}

static boolean decode_mcu(j_decompress_ptr decoder, JBLOCKROW *blocks)
{
  struct reconstructor *self = decoder->client_data;
  /* The blocks of an MCU lie behind one another (jdcoefct.c). */
  if (blocks != NULL)
    self->fill(self->source, blocks[0][0], decoder->blocks_in_MCU);
  return TRUE;
}

void wrn_dist_reconstructor_free(struct reconstructor *self)
{
  if (self == NULL)
    return;
  jpeg_destroy_decompress(&self->decoder);
  free(self);
}

static int create(struct reconstructor *self)
{
  if (setjmp(self->escape))
    return -1;
  jpeg_create_decompress(&self->decoder);
  return 0;
}

/* NULL without memory. */
struct reconstructor *wrn_dist_reconstructor_new(void)
{
  struct reconstructor *self = calloc(1, sizeof(*self));
  if (self == NULL)
    return NULL;
  self->decoder.err = jpeg_std_error(&self->errors);
  self->errors.error_exit = escape;
  self->errors.emit_message = warn;
  self->errors.output_message = keep_silent;
  self->decoder.client_data = self; /* which jpeg_create_decompress keeps */
  if (create(self) != 0) {
    wrn_dist_reconstructor_free(self);
    return NULL;
  }
  return self;
}

/* Decodes an image of `width` x `height` pixels after scaling by 1 / `denominator` to RGB, rows without gaps. Gives 0,
 * or -1 where the headers do not make such an image. */
int wrn_dist_reconstruct(struct reconstructor *self, const unsigned char *headers, size_t length,
                         unsigned denominator, fill_mcu fill, void *source, unsigned width, unsigned height,
                         unsigned char *pixels)
{
  j_decompress_ptr decoder = &self->decoder;
  if (setjmp(self->escape)) {
    jpeg_abort_decompress(decoder);
    return -1;
  }
  jpeg_mem_src(decoder, headers, length);
  jpeg_read_header(decoder, TRUE);
  decoder->out_color_space = JCS_RGB;
  decoder->scale_num = 1;
  decoder->scale_denom = denominator;
  if (decoder->progressive_mode || decoder->arith_code || decoder->data_precision != 8)
    escape((j_common_ptr)decoder);
  jpeg_start_decompress(decoder);
  if (decoder->output_width != width || decoder->output_height != height || decoder->output_components != 3 ||
      decoder->comps_in_scan != decoder->num_components)
    escape((j_common_ptr)decoder);
  self->fill = fill;
  self->source = source;
  ((struct entropy_entries *)decoder->entropy)->decode_mcu = decode_mcu;
  while (decoder->output_scanline < height) {
    JSAMPROW rows[4];
    JDIMENSION count = 0;
    for (; count < 4 && decoder->output_scanline + count < height; count++)
      rows[count] = pixels + (size_t)3 * width * (decoder->output_scanline + count);
    jpeg_read_scanlines(decoder, rows, count);
  }
  jpeg_abort_decompress(decoder);
  return 0;
}
