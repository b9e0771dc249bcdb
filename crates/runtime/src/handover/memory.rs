//! Files that exist in memory alone and that nobody can change any more: memfd_create(2), `F_ADD_SEALS` in fcntl(2).

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

/// A file of these bytes that can no longer be changed. `name` is for those who look at a process's descriptors.
///
/// # Errors
/// When the system has no memory for it, or no such files.
pub fn sealed(name: &str, pieces: &[&[u8]]) -> io::Result<OwnedFd> {
    #[cfg(target_os = "linux")]
    {
        use std::io::Write as _;

        use rustix::fs::{SealFlags, fcntl_add_seals};

        let mut file = create(name)?;
        for piece in pieces {
            file.write_all(piece)?;
        }
        let all = SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        fcntl_add_seals(&file, all)?;
        Ok(file.into())
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = (name, pieces);
        Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "memory files are Linux's",
        ))
    }
}

#[cfg(target_os = "linux")]
fn create(name: &str) -> io::Result<File> {
    use rustix::fs::{MemfdFlags, memfd_create};

    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Hardened hosts (`vm.memfd_noexec`) want to be told that it is no program; Linux before 6.3 does not know how.
    let file = match memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL) {
        Err(error) if error == rustix::io::Errno::INVAL => memfd_create(name, flags)?,
        made => made?,
    };
    Ok(File::from(file))
}

/// A file of zeros that can be written to, and whose size stays.
pub(super) fn of_size(name: &str, bytes: u64) -> io::Result<OwnedFd> {
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{SealFlags, fcntl_add_seals};

        let file = create(name)?;
        file.set_len(bytes)?;
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        Ok(file.into())
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = (name, bytes);
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Whether [`of_size`] may have made it.
pub(super) fn has_fixed_size(file: &OwnedFd) -> bool {
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{SealFlags, fcntl_get_seals};
        let fixed = SealFlags::SHRINK | SealFlags::GROW;
        fcntl_get_seals(file).is_ok_and(|seals| seals.contains(fixed))
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = file;
        false
    }
}

/// The content of a file that [`sealed`] has made.
///
/// # Errors
/// When it is no such file, or larger than `bytes_max`.
pub fn read_sealed(file: OwnedFd, bytes_max: usize) -> io::Result<Vec<u8>> {
    let refused = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{SealFlags, fcntl_get_seals};
        let seals = fcntl_get_seals(&file).map_err(|_| refused("it is no memory file"))?;
        if !seals.contains(SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW) {
            return Err(refused("somebody could still change it"));
        }
    }
    let file = File::from(file);
    let bytes = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
    if bytes > bytes_max {
        return Err(refused("it is larger than it may be"));
    }
    let mut content = vec![0; bytes];
    // From its beginning, wherever whoever wrote it has stopped.
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut content, 0)?;
    Ok(content)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Write as _;

    use rustix::fs::{MemfdFlags, memfd_create};

    use super::*;

    #[test]
    fn a_sealed_file_is_read_back_and_changed_by_nobody() {
        let file = sealed("test", &[b"one ", b"", b"two"]).unwrap();
        let mut writer = File::from(file.try_clone().unwrap());
        assert!(writer.write_all(b"x").is_err());
        assert!(writer.set_len(0).is_err());
        assert_eq!(read_sealed(file.try_clone().unwrap(), 7).unwrap(), b"one two");
        assert!(read_sealed(file, 6).is_err());
    }

    #[test]
    fn what_somebody_could_still_change_is_not_read() {
        let open = memfd_create("test", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        assert!(read_sealed(open, 10).is_err());
        let other = File::open("/proc/self/exe").unwrap();
        assert!(read_sealed(other.into(), usize::MAX).is_err());
        let (_writer, pipe) = io::pipe().unwrap();
        assert!(read_sealed(pipe.into(), usize::MAX).is_err());
    }
}
