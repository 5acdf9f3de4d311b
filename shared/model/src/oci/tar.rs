//! Lists a tar archive's regular files by name and place, without reading their contents.
//!
//! Our own walk over the `tar` crate's headers, because the crate's iterator resolves long names and
//! links of its own accord and reads them whole, and an image archive has neither.

use std::collections::BTreeMap;
use std::io::{self, Read, Seek, SeekFrom};

use ::tar::{EntryType, Header};

use super::OciError;

const BLOCK_BYTES: u64 = 512;
/// A layout has some blobs per image; archives of whole registries are not for us.
const MAX_ENTRIES: usize = 10_000;
/// A pax header holds a size and some times.
const MAX_PAX_BYTES: u64 = 64 << 10;

/// Where a file's bytes lie in the archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) offset_bytes: u64,
    pub(super) size_bytes: u64,
}

/// What went wrong: in the archive's bytes, or with reading them.
pub(super) enum WalkError {
    Io(io::Error),
    NotTar(&'static str),
    Refused(OciError),
}

impl From<io::Error> for WalkError {
    fn from(error: io::Error) -> Self {
        WalkError::Io(error)
    }
}

/// The regular files of an archive by name. Anything that is neither a file nor a folder, and any
/// name that stands twice, is refused.
pub(super) fn list(archive: &mut (impl Read + Seek)) -> Result<BTreeMap<String, Place>, WalkError> {
    let archive_bytes = archive.seek(SeekFrom::End(0))?;
    let mut files = BTreeMap::new();
    let mut entries = 0;
    let mut at = 0;
    let mut pax_size = None;
    while at < archive_bytes {
        let mut block = [0; BLOCK_BYTES as usize];
        archive.seek(SeekFrom::Start(at))?;
        archive.read_exact(&mut block).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => WalkError::NotTar("it ends in the middle of a header"),
            _ => WalkError::Io(e),
        })?;
        at += BLOCK_BYTES;
        if block.iter().all(|&b| b == 0) {
            break;
        }
        let header = Header::from_byte_slice(&block);
        if !checksum_holds(header, &block) {
            return Err(WalkError::NotTar(if at == BLOCK_BYTES {
                "it is not a tar file"
            } else {
                "it is damaged: a header's checksum is wrong"
            }));
        }
        entries += 1;
        if entries > MAX_ENTRIES {
            return Err(WalkError::NotTar("it has more than 10,000 entries"));
        }
        let own_size = header
            .entry_size()
            .map_err(|_| WalkError::NotTar("a header's size is no number"))?;
        let kind = header.entry_type();
        // A pax header speaks of the entry right after it.
        let size_bytes = pax_size.take().unwrap_or(own_size);
        let end = at
            .checked_add(size_bytes)
            .filter(|&end| end <= archive_bytes)
            .ok_or(WalkError::NotTar(
                "it is cut off: a file is longer than the archive",
            ))?;
        let name = || String::from_utf8_lossy(&header.path_bytes()).into_owned();
        match kind {
            EntryType::XHeader => pax_size = read_pax(archive, size_bytes)?,
            EntryType::XGlobalHeader | EntryType::Directory => {}
            EntryType::Regular => {
                let name = name();
                let place = Place {
                    offset_bytes: at,
                    size_bytes,
                };
                if files.insert(clean(&name).to_owned(), place).is_some() {
                    return Err(refused(name, "stands twice"));
                }
            }
            _ => return Err(refused(name(), "is neither a file nor a folder")),
        }
        at = end.next_multiple_of(BLOCK_BYTES);
    }
    Ok(files)
}

/// `./oci-layout` and `oci-layout` are the same name.
fn clean(name: &str) -> &str {
    name.strip_prefix("./").unwrap_or(name)
}

fn refused(name: String, problem: &'static str) -> WalkError {
    let name = name.chars().take(120).collect();
    WalkError::Refused(OciError::Entry { name, problem })
}

fn checksum_holds(header: &Header, block: &[u8; BLOCK_BYTES as usize]) -> bool {
    // The sum counts its own eight bytes as spaces.
    let sum: u32 = block
        .iter()
        .enumerate()
        .map(|(i, &b)| u32::from(if (148..156).contains(&i) { b' ' } else { b }))
        .sum();
    header.cksum().is_ok_and(|stated| stated == sum)
}

/// The size that a pax header gives the file after it, for files of 8 GiB and more. A pax path or
/// link is refused: no name in a layout needs one.
fn read_pax(archive: &mut impl Read, size_bytes: u64) -> Result<Option<u64>, WalkError> {
    if size_bytes > MAX_PAX_BYTES {
        return Err(WalkError::NotTar("a pax header is larger than 64 KiB"));
    }
    let mut records = vec![0; size_bytes as usize];
    archive.read_exact(&mut records)?;
    let mut size = None;
    for record in ::tar::PaxExtensions::new(&records) {
        let record = record.map_err(|_| WalkError::NotTar("a pax header is malformed"))?;
        match record.key_bytes() {
            b"size" => {
                let text = record.value().ok();
                let parsed = text.and_then(|text| text.parse().ok());
                size = Some(parsed.ok_or(WalkError::NotTar("a pax size is no number"))?);
            }
            b"path" | b"linkpath" => {
                let name = String::from_utf8_lossy(record.value_bytes()).into_owned();
                return Err(refused(name, "has a name that no image layout has"));
            }
            _ => {}
        }
    }
    Ok(size)
}
