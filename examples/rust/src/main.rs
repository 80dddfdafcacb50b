//! Unpacks what the C example has stored, or any other zstd stream, and says what it was:
//!
//!     cargo build --offline && target/debug/unpack etc.tar <etc.tar.zst
//!
//! The file appears only if every byte of its source was as it had been written.

mod s3dlio;

use std::env;
use std::io::{self, Read};
use std::path::Path;
use std::process;

fn unpack(input: &mut dyn Read, path: &Path) -> Result<String, String> {
    let mut decoder = s3dlio::Decoder::new()?;
    let mut writer = s3dlio::Writer::open(path)?;
    let (mut packed, mut plain) = (vec![0; 1 << 16], vec![0; 1 << 20]);
    let (mut crc, mut total) = (0, 0);
    loop {
        let nbytes = input.read(&mut packed).map_err(|error| error.to_string())?;
        let mut rest = &packed[..nbytes];
        loop {
            let (taken, given) = decoder.read(rest, &mut plain)?;
            writer.write(&plain[..given])?;
            crc = s3dlio::crc32c(crc, &plain[..given]);
            total += given;
            rest = &rest[taken..];
            if rest.is_empty() && given < plain.len() {
                break;
            }
        }
        if nbytes == 0 {
            break;
        }
    }
    decoder.end()?;
    writer.close()?;
    Ok(format!("crc32c:{:08x} {} bytes", crc, total))
}

fn main() {
    let arguments: Vec<_> = env::args_os().collect();
    if arguments.len() != 2 {
        eprintln!("usage: unpack FILE <INPUT");
        process::exit(2);
    }
    match unpack(&mut io::stdin().lock(), Path::new(&arguments[1])) {
        Ok(line) => println!("{}", line),
        Err(error) => {
            eprintln!("unpack: {}", error);
            process::exit(1);
        }
    }
}
