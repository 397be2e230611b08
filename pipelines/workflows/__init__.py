"""A recipe's stages as other systems' workflows, each step a command of ours."""
