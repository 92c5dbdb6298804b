//! In: series of kernels; out: for each the newest uncompressed image Debian has of it, or the reason why there is none.
//! Knows nothing of what runs on them.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{fs, thread};

use anyhow::{Context, Result, bail, ensure};

use super::apt::{Apt, Sources};
use super::places::cache;
use crate::workspace;

/// The flavour for virtual machines: small, with everything we need built in.
const FLAVOUR: &str = "-cloud-amd64";
/// Packages that hold a kernel's image, best first. Since 7.2 the image is in a package apart.
const PACKAGES: [(&str, &str); 4] = [
    ("linux-binary-", ""),
    ("linux-image-", ""),
    ("linux-binary-unsigned-", ""),
    ("linux-image-", "-unsigned"),
];
/// Debian's suites that have kernels, by archive.
const MAIN: &[&str] = &["trixie", "trixie-backports", "sid"];
const SECURITY: &[&str] = &["bullseye-security", "bookworm-security", "trixie-security"];

/// A kernel to boot.
pub struct Kernel {
    /// Debian's version of it, as in the package's name.
    pub version: String,
    /// The uncompressed image.
    pub image: PathBuf,
}

/// A package with a kernel's image.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Offer {
    package: String,
    version: String,
    /// Place in [`PACKAGES`].
    rank: usize,
}

/// Fetches the newest kernel of each series, `newest` being the newest of all. The reason where there is none.
pub fn fetch(series: &[String]) -> Vec<(String, Result<Kernel, String>)> {
    let opened = Apt::open(&cache().join("apt"), &Sources::Debian { main: MAIN, security: SECURITY })
        .and_then(|apt| Ok((offers(&apt.names("linux-")?), apt)));
    let one = |series: &String| {
        let fetched = match &opened {
            Ok((offers, apt)) => fetch_one(series, offers, apt),
            Err(error) => Err(anyhow::anyhow!("{error:#}")),
        };
        let kernel = fetched.or_else(|error| {
            // What was fetched earlier still boots.
            let kernel = cached(series).ok_or_else(|| format!("cannot be fetched: {error:#}"))?;
            println!("vm: {series}: {error:#}; taking {} from the cache", kernel.version);
            Ok(kernel)
        });
        (series.clone(), kernel)
    };
    series.iter().map(one).collect()
}

fn image(version: &str) -> PathBuf {
    cache().join("kernels").join(format!("vmlinux-{version}"))
}

fn fetch_one(series: &str, offers: &[Offer], apt: &Apt) -> Result<Kernel> {
    let offer = best(series, offers).context("Debian's archive has no such kernel (any more)")?;
    let image = image(&offer.version);
    if !image.is_file() {
        println!("vm: fetching {}", offer.package);
        let unpacked = cache().join("unpacked");
        let _ = fs::remove_dir_all(&unpacked);
        let written = apt.unpack(&offer.package, &unpacked).and_then(|()| {
            let compressed = find_image(&unpacked)
                .with_context(|| format!("package {} holds no kernel image", offer.package))?;
            let bytes =
                fs::read(&compressed).with_context(|| format!("cannot read \"{}\"", compressed.display()))?;
            workspace::write_if_changed(&image, &uncompress(&bytes)?)
        });
        let _ = fs::remove_dir_all(&unpacked);
        written?;
    }
    Ok(Kernel { version: offer.version.clone(), image })
}

/// The newest kernel of a series in the cache.
fn cached(series: &str) -> Option<Kernel> {
    let entries = fs::read_dir(cache().join("kernels")).ok()?;
    let versions = entries
        .filter_map(|entry| Some(entry.ok()?.file_name().to_str()?.strip_prefix("vmlinux-")?.to_owned()));
    let version = versions.filter(|version| is_of(version, series)).max_by_key(|v| numbers(v))?;
    Some(Kernel { image: image(&version), version })
}

fn offers(names: &[String]) -> Vec<Offer> {
    let offer = |name: &String| {
        let (rank, version) = PACKAGES.iter().enumerate().find_map(|(rank, (prefix, suffix))| {
            let inner = name.strip_prefix(prefix)?.strip_suffix(suffix)?.strip_suffix(FLAVOUR)?;
            // Not `linux-image-cloud-amd64`, which names no version.
            inner.starts_with(|c: char| c.is_ascii_digit()).then_some((rank, inner))
        })?;
        Some(Offer { package: name.clone(), version: version.to_owned(), rank })
    };
    names.iter().filter_map(offer).collect()
}

/// The newest of a series; of one version the package that Debian has signed and that holds the image itself.
fn best<'a>(series: &str, offers: &'a [Offer]) -> Option<&'a Offer> {
    let of_series = offers.iter().filter(|offer| is_of(&offer.version, series));
    of_series.max_by_key(|offer| (numbers(&offer.version), std::cmp::Reverse(offer.rank)))
}

fn is_of(version: &str, series: &str) -> bool {
    series == "newest"
        || version.strip_prefix(series).is_some_and(|rest| rest.starts_with('.') && rest.len() > 1)
}

/// All numbers of a version, in order: Debian's versions of kernels compare by them.
fn numbers(version: &str) -> Vec<u64> {
    version.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
}

/// `vmlinuz*` in the folders where Debian has it.
fn find_image(root: &Path) -> Option<PathBuf> {
    let modules = fs::read_dir(root.join("usr/lib/modules")).into_iter().flatten().flatten();
    let folders = modules.map(|entry| entry.path()).chain([root.join("boot")]);
    let files = folders.filter_map(|folder| fs::read_dir(folder).ok()).flatten().flatten();
    files.map(|entry| entry.path()).find(|path| {
        path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with("vmlinuz"))
    })
}

/// Takes the uncompressed kernel out of a bzImage (Documentation/arch/x86/boot.rst: `setup_sects`, `payload_offset`,
/// `payload_length`).
fn uncompress(image: &[u8]) -> Result<Vec<u8>> {
    let number = |at: usize| {
        let bytes = image.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
        bytes.map(|bytes| u32::from_le_bytes(bytes) as usize).context("the kernel image is too short")
    };
    ensure!(image.get(0x202..0x206) == Some(b"HdrS"), "the kernel image is no bzImage");
    let sectors = match image[0x1f1] {
        0 => 4,
        n => usize::from(n),
    };
    let start = (sectors + 1) * 512 + number(0x248)?;
    let payload = image.get(start..start + number(0x24c)?).context("the kernel image is cut short")?;
    // The last four bytes are the uncompressed size.
    let Some((packed, size)) = payload.split_last_chunk::<4>() else { bail!("the kernel image is empty") };
    let tool = match packed {
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "zstd",
        [0xfd, b'7', b'z', b'X', b'Z', ..] => "xz",
        [0x02, 0x21, 0x4c, 0x18, ..] => "lz4",
        [0x1f, 0x8b, ..] => "gzip",
        _ => bail!("the kernel image is compressed in a way not known here"),
    };
    if workspace::which(tool).is_none() {
        bail!("`{tool}`, with which this kernel is compressed, is not installed");
    }
    let unpacked = filter(tool, packed)?;
    let size = u32::from_le_bytes(*size) as usize;
    ensure!(unpacked.len() == size, "`{tool}` gave {} of the kernel's {size} bytes", unpacked.len());
    ensure!(unpacked.starts_with(b"\x7fELF"), "the kernel in the image is no ELF file");
    Ok(unpacked)
}

/// Sends bytes through `TOOL -dc`.
fn filter(tool: &str, bytes: &[u8]) -> Result<Vec<u8>> {
    let mut child = Command::new(tool)
        .arg("-dc")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{tool}`"))?;
    let mut stdin = child.stdin.take().context("no standard input")?;
    let output = thread::scope(|scope| {
        // Both pipes at once: each holds less than the kernel.
        scope.spawn(move || {
            let _ = stdin.write_all(bytes);
        });
        child.wait_with_output()
    })?;
    ensure!(output.status.success(), "`{tool} -dc` failed ({})", output.status);
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offers_of(names: &[&str]) -> Vec<Offer> {
        offers(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn the_newest_of_a_series() {
        let offers = offers_of(&[
            "linux-image-6.1.0-9-cloud-amd64",
            "linux-image-6.1.0-56-cloud-amd64",
            "linux-image-6.1.0-56-cloud-amd64-unsigned",
            "linux-image-6.1.0-56-cloud-amd64-dbg",
            "linux-image-6.1.0-0.deb11.52-cloud-amd64",
            "linux-image-6.12.117+deb13-cloud-amd64",
            "linux-image-6.12.99+deb13-cloud-amd64",
            "linux-image-7.2.13+deb14-cloud-amd64",
            "linux-binary-7.2.13+deb14-cloud-amd64",
            "linux-binary-unsigned-7.3.4+deb13-cloud-amd64",
            "linux-image-cloud-amd64",
            "linux-headers-9.9.9-cloud-amd64",
        ]);
        let best = |series: &str| best(series, &offers).map(|offer| offer.package.as_str());
        assert_eq!(best("6.1"), Some("linux-image-6.1.0-56-cloud-amd64"));
        assert_eq!(best("6.12"), Some("linux-image-6.12.117+deb13-cloud-amd64"));
        assert_eq!(best("7.2"), Some("linux-binary-7.2.13+deb14-cloud-amd64"));
        assert_eq!(best("newest"), Some("linux-binary-unsigned-7.3.4+deb13-cloud-amd64"));
        assert_eq!(best("5.10"), None);
        assert_eq!(best("6"), Some("linux-image-6.12.117+deb13-cloud-amd64"));
    }

    #[test]
    fn broken_images_are_refused() {
        assert!(uncompress(b"").is_err());
        let mut image = vec![0; 8192];
        assert!(uncompress(&image).is_err());
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x24c] = 8;
        assert!(uncompress(&image).unwrap_err().to_string().contains("not known"));
        image[0x24c..0x250].copy_from_slice(&[0xff; 4]);
        assert!(uncompress(&image).unwrap_err().to_string().contains("cut short"));
    }
}
