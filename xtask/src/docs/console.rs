//! In: Markdown; out: its console blocks, each with the recipe above it, and the same text with other blocks. Runs nothing.

use anyhow::{Context, Result, bail};

use super::recipe::Recipe;

/// How a recipe begins and ends, on the line above its block.
const MARK: (&str, &str) = ("<!-- run: ", " -->");

/// A block of what a command printed.
pub struct Block {
    /// How it is made.
    pub recipe: Recipe,
    /// The number of its first line below the fence, from 1.
    pub line: usize,
    /// What stands in it, with line breaks.
    pub text: String,
}

/// The blocks that recipes make. A console block without a recipe is an error: nothing would notice when it is wrong.
pub fn blocks(path: &str, text: &str) -> Result<Vec<Block>> {
    let mut blocks = Vec::new();
    let mut lines = text.lines().enumerate();
    let mut mark: Option<Recipe> = None;
    while let Some((index, line)) = lines.next() {
        if let Some(name) = line.strip_prefix(MARK.0) {
            let name =
                name.strip_suffix(MARK.1).with_context(|| format!("{path}:{}: no `-->`", index + 1))?;
            mark = Some(name.parse().with_context(|| format!("{path}:{}", index + 1))?);
            continue;
        }
        let recipe = mark.take();
        let Some(kind) = line.strip_prefix("```") else {
            if recipe.is_some() {
                bail!("{path}:{}: a recipe stands right above its block", index + 1);
            }
            continue;
        };
        if kind == "console" && recipe.is_none() {
            bail!("{path}:{}: a console block needs a recipe above it: {}...{}", index + 1, MARK.0, MARK.1);
        }
        let mut body = String::new();
        for (_, line) in lines.by_ref().take_while(|(_, line)| *line != "```") {
            body.push_str(line);
            body.push('\n');
        }
        blocks.extend(recipe.map(|recipe| Block { recipe, line: index + 2, text: body }));
    }
    Ok(blocks)
}

/// The text with the blocks' new contents, in the order of [`blocks`].
pub fn replace(text: &str, blocks: &[Block], contents: &[String]) -> String {
    let mut out = String::new();
    let mut number = 1;
    let mut lines = text.split_inclusive('\n');
    for (block, content) in blocks.iter().zip(contents) {
        lines.by_ref().take(block.line - number).for_each(|line| out.push_str(line));
        out.push_str(content);
        let old = block.text.lines().count();
        lines.by_ref().take(old).for_each(drop);
        number = block.line + old;
    }
    lines.for_each(|line| out.push_str(line));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str =
        "# A\n\n<!-- run: kernmeter doctor -->\n```console\n# old\nlines\n```\n\n```yaml\n<!-- b\n```\nend\n";

    #[test]
    fn blocks_are_found_and_replaced() {
        let found = blocks("A.md", TEXT).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(
            (found[0].recipe, found[0].line, found[0].text.as_str()),
            (Recipe::Doctor, 5, "# old\nlines\n")
        );
        let new = replace(TEXT, &found, &["# new\n".to_owned()]);
        assert_eq!(new, TEXT.replace("# old\nlines\n", "# new\n"));
        assert_eq!(replace(TEXT, &found, &[found[0].text.clone()]), TEXT);
    }

    #[test]
    fn what_nothing_would_check_is_refused() {
        for (text, complaint) in [
            ("a\n```console\n# x\n```\n", "A.md:2: a console block needs a recipe"),
            ("<!-- run: rm -rf / -->\n```console\n```\n", "A.md:1"),
            ("<!-- run: kernmeter doctor -->\n\n```console\n```\n", "A.md:2: a recipe stands right above"),
        ] {
            let error = blocks("A.md", text).err().map(|error| format!("{error:#}")).unwrap_or_default();
            assert!(error.contains(complaint), "{text:?}: {error}");
        }
    }
}
