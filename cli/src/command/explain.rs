use crate::args::ExplainArgs;
use crate::error::Result;
pub fn run(_args: &ExplainArgs) -> Result<()> {
    Ok(())
}
