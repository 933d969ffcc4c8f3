//! URLs as users write them → URLs as they go over the wire, and the file names in them.

/// Schemes that the download speaks. One without is http, as for the original's tool.
const SCHEMES: &[&str] = &["http", "https", "ftp", "ftps"];
/// Longest file name, in bytes.
const NAME: usize = 255;

/// Escapes what has no place in a URL, blanks and quotes for example; what is escaped stays so. Else what is wrong with it.
pub fn escaped(text: &str) -> Result<String, String> {
    let text = text.trim();
    let address = match text.split_once("://") {
        Some((scheme, rest)) if SCHEMES.contains(&scheme.to_ascii_lowercase().as_str()) => rest,
        Some((scheme, _)) => return Err(format!("the scheme {scheme:?} cannot be downloaded from")),
        None => text,
    };
    if address.is_empty() || address.starts_with(['/', '?', '#', '-']) {
        return Err("it names no host".into());
    }
    let mut url = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => url.push(char::from(byte)),
            _ if b"-._~:/?#[]@!$&'()*+,;=%".contains(&byte) => url.push(char::from(byte)),
            _ => url.push_str(&format!("%{byte:02X}")),
        }
    }
    Ok(url)
}

/// The name of the file that a URL names, as it is in a file system; `None`: it names none.
pub fn file_name(url: &str) -> Option<String> {
    let path = url.split(['?', '#']).next().unwrap_or_default();
    let address = path.split_once("://").map_or(path, |(_, rest)| rest);
    let (_, segment) = address.rsplit_once('/')?;
    let name = unescaped(segment)?;
    let is_name = !matches!(name.as_str(), "" | "." | "..")
        && name.len() <= NAME
        && !name.contains('/')
        && !name.contains(char::is_control);
    is_name.then_some(name)
}

fn unescaped(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let escape = after.get(..2).filter(|_| first == b'%');
        let code = escape.and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        match code {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_place_in_a_url_is_escaped_once() {
        for (text, want) in [
            ("https://h/a.h5", "https://h/a.h5"),
            (
                " http://h/my model's \"best\".h5 ",
                "http://h/my%20model's%20%22best%22.h5",
            ),
            (
                "http://h/my%20model.h5?x={a}&y=$(b)#c",
                "http://h/my%20model.h5?x=%7Ba%7D&y=$(b)#c",
            ),
            ("http://h/a\nb`c`\\ä", "http://h/a%0Ab%60c%60%5C%C3%A4"),
            ("FTP://h/a", "FTP://h/a"),
            ("h/a", "h/a"),
        ] {
            assert_eq!(escaped(text).as_deref(), Ok(want), "{text:?}");
        }
        for text in [
            "s3://b/k",
            "file:///etc/passwd",
            "http://",
            "http:///a",
            "/a",
            "-K/etc/passwd",
            "gs://x",
        ] {
            assert!(escaped(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_file_name_is_the_last_part_of_the_path() {
        for (url, want) in [
            ("https://h/a/tf_model.h5", Some("tf_model.h5")),
            ("https://h/a/my%20model's.h5?download=true#x", Some("my model's.h5")),
            ("https://h/100%.h5", Some("100%.h5")),
            ("https://h/a/", None),
            ("https://h", None),
            ("https://h/..", None),
            ("https://h/%2e%2e", None),
            ("https://h/a%2Fb", None),
            ("https://h/a%00b", None),
            ("https://h/%ff", None),
        ] {
            assert_eq!(file_name(url).as_deref(), want, "{url}");
        }
    }
}
