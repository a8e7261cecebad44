//! ILSVRC2012's development kit: which class each validation image is of, and what the classes are called.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use flate2::read::MultiGzDecoder;
use tar::Archive;

use crate::error::DataError;
use crate::file;
use crate::mat::{MatFile, Value, parse};

/// Both files of interest are a hundredth of this.
const LARGEST_FILE: u64 = 64 << 20;
const GROUND_TRUTH: &str = "ILSVRC2012_validation_ground_truth.txt";
const META: &str = "meta.mat";

/// What the kit says.
#[derive(Debug)]
pub(crate) struct Devkit {
    /// Words by WordNet id, of the classes only.
    pub(crate) words: BTreeMap<String, String>,
    /// WordNet id of each validation image, from the first.
    pub(crate) validation: Vec<String>,
}

impl Devkit {
    /// Reads the kit's `.tar.gz`.
    pub(crate) fn open(path: &Path) -> Result<Self, DataError> {
        let (opened, _) = file::open(path)?;
        let damaged = |error: std::io::Error| invalid(path, format!("is damaged: {error}"), "a .tar.gz");
        let mut archive = Archive::new(MultiGzDecoder::new(std::io::BufReader::new(opened)));
        let (mut ground_truth, mut meta) = (None, None);
        for entry in archive.entries().map_err(damaged)? {
            let mut entry = entry.map_err(damaged)?;
            let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            let slot = match name.rsplit('/').next() {
                Some(GROUND_TRUTH) => &mut ground_truth,
                Some(META) => &mut meta,
                _ => continue,
            };
            if entry.size() > LARGEST_FILE {
                return Err(invalid(
                    path,
                    format!("`{name}` has {} bytes", entry.size()),
                    "the published kit",
                ));
            }
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).map_err(damaged)?;
            *slot = Some(bytes);
        }
        let lacks = |name: &str| invalid(path, format!("has no {name}"), "the published kit");
        let ids = read_meta(path, &meta.ok_or_else(|| lacks(META))?)?;
        let ground_truth = ground_truth.ok_or_else(|| lacks(GROUND_TRUTH))?;
        let mut validation = Vec::new();
        for (line, text) in String::from_utf8_lossy(&ground_truth).lines().enumerate() {
            let class = text.trim().parse().ok().and_then(|id: u32| ids.get(&id));
            let Some((wordnet, _)) = class else {
                let problem = format!("line {} of {GROUND_TRUTH} is `{}`", line + 1, text.trim());
                return Err(invalid(path, problem, "an ILSVRC2012_ID of a class in meta.mat"));
            };
            validation.push(wordnet.clone());
        }
        Ok(Devkit { words: ids.into_values().collect(), validation })
    }
}

/// WordNet id and words by ILSVRC2012_ID, of the synsets without children: those are the classes.
fn read_meta(path: &Path, bytes: &[u8]) -> Result<BTreeMap<u32, (String, String)>, DataError> {
    let wrong = |problem: &str| invalid(path, format!("its meta.mat {problem}"), "the published kit");
    let mut file = MatFile::from_bytes(&path.join(META), bytes)?;
    while let Some(matrix) = file.next()? {
        if matrix.name != "synsets" || !matrix.is_struct() {
            continue;
        }
        let class = matrix.class;
        let content = matrix.content(LARGEST_FILE)?;
        let Value::Struct { fields, values } = parse(&path.join(META), class, &content)? else { break };
        let column = |name: &str| {
            let place = fields.iter().position(|field| field == name);
            place.ok_or_else(|| wrong(&format!("has no field {name}")))
        };
        let [id, wordnet, words, children] =
            [column("ILSVRC2012_ID")?, column("WNID")?, column("words")?, column("num_children")?];
        let mut classes = BTreeMap::new();
        for synset in values.chunks_exact(fields.len()) {
            if synset[children].number() != Some(0.0) {
                continue;
            }
            let id = synset[id].number().filter(|id| (1.0..=1e6).contains(id) && id.fract() == 0.0);
            let (Some(id), Some(wordnet), Some(words)) = (id, synset[wordnet].text(), synset[words].text())
            else {
                return Err(wrong("has a synset without id, WNID or words"));
            };
            classes.insert(id as u32, (wordnet.to_owned(), words.to_owned()));
        }
        return Ok(classes);
    }
    Err(wrong("has no variable `synsets`"))
}

fn invalid(path: &Path, problem: impl Into<String>, expected: &str) -> DataError {
    DataError::Invalid { path: path.into(), problem: problem.into(), expected: expected.into() }
}
