use crate::args::VerifyArgs;
use crate::error::Result;
pub fn run(_args: &VerifyArgs) -> Result<()> {
    Ok(())
}
