"""A library within other programs: agents (MCP), LangChain and LlamaIndex. Each needs its own extra."""
