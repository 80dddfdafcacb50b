//! The calls of libs3dlio that this program needs, as its headers declare them, and what makes them Rust's own.

use std::ffi::{CStr, CString};
use std::os::raw::{c_char, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;

#[repr(C)]
struct ZstdIn {
    data: *const c_void,
    nbytes: usize,
    pos: usize,
}

#[repr(C)]
struct ZstdOut {
    data: *mut c_void,
    nbytes: usize,
    pos: usize,
}

#[repr(C)]
struct RawDecoder {
    _opaque: [u8; 0],
}

#[repr(C)]
struct RawWriter {
    _opaque: [u8; 0],
}

extern "C" {
    fn s3dlio_status_text(code: c_int, text: *mut c_char, text_nbytes: usize) -> *const c_char;
    fn s3dlio_crc32c(crc: u32, data: *const c_void, nbytes: usize) -> u32;
    fn s3dlio_zstd_decoder_new(decoder_ret: *mut *mut RawDecoder) -> c_int;
    fn s3dlio_zstd_decoder_read(decoder: *mut RawDecoder, input: *mut ZstdIn, output: *mut ZstdOut) -> c_int;
    fn s3dlio_zstd_decoder_end(decoder: *const RawDecoder) -> c_int;
    fn s3dlio_zstd_decoder_free(decoder: *mut RawDecoder);
    fn s3dlio_writer_open(writer_ret: *mut *mut RawWriter, path: *const c_char, options: *const c_void) -> c_int;
    fn s3dlio_writer_write(writer: *mut RawWriter, data: *const c_void, nbytes: usize, taken_ret: *mut usize) -> c_int;
    fn s3dlio_writer_close(writer: *mut RawWriter) -> c_int;
    fn s3dlio_writer_free(writer: *mut RawWriter);
}

fn check(status: c_int) -> Result<(), String> {
    if status >= 0 {
        return Ok(());
    }
    let mut text: [c_char; 128] = [0; 128];
    // The text is cut to the room and ends with a zero byte.
    let text = unsafe { CStr::from_ptr(s3dlio_status_text(status, text.as_mut_ptr(), text.len())) };
    Err(text.to_string_lossy().into_owned())
}

pub fn crc32c(crc: u32, data: &[u8]) -> u32 {
    unsafe { s3dlio_crc32c(crc, data.as_ptr().cast(), data.len()) }
}

pub struct Decoder(*mut RawDecoder);

impl Decoder {
    pub fn new() -> Result<Self, String> {
        let mut raw = ptr::null_mut();
        check(unsafe { s3dlio_zstd_decoder_new(&mut raw) })?;
        Ok(Decoder(raw))
    }

    /// Returns how much of `input` was read and how much of `output` was filled.
    pub fn read(&mut self, input: &[u8], output: &mut [u8]) -> Result<(usize, usize), String> {
        let mut from = ZstdIn { data: input.as_ptr().cast(), nbytes: input.len(), pos: 0 };
        let mut to = ZstdOut { data: output.as_mut_ptr().cast(), nbytes: output.len(), pos: 0 };
        check(unsafe { s3dlio_zstd_decoder_read(self.0, &mut from, &mut to) })?;
        Ok((from.pos, to.pos))
    }

    /// Whether the input may end here.
    pub fn end(&self) -> Result<(), String> {
        check(unsafe { s3dlio_zstd_decoder_end(self.0) })
    }
}

impl Drop for Decoder {
    fn drop(&mut self) {
        unsafe { s3dlio_zstd_decoder_free(self.0) }
    }
}

/// A file that appears with `close`, and not at all when the writer is dropped before.
pub struct Writer(*mut RawWriter);

impl Writer {
    pub fn open(path: &Path) -> Result<Self, String> {
        let path = CString::new(path.as_os_str().as_bytes()).map_err(|error| error.to_string())?;
        let mut raw = ptr::null_mut();
        check(unsafe { s3dlio_writer_open(&mut raw, path.as_ptr(), ptr::null()) })?;
        Ok(Writer(raw))
    }

    pub fn write(&mut self, data: &[u8]) -> Result<(), String> {
        check(unsafe { s3dlio_writer_write(self.0, data.as_ptr().cast(), data.len(), ptr::null_mut()) })
    }

    pub fn close(self) -> Result<(), String> {
        check(unsafe { s3dlio_writer_close(self.0) })
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        unsafe { s3dlio_writer_free(self.0) }
    }
}
