"""The arguments of the tools, as models are told of them. Needs pydantic, which every framework brings."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from flame.agents import toolbox

Code = Annotated[str, Field(description="Python code.")]
Command = Annotated[str, Field(description="One line for the shell.")]
Path = Annotated[str, Field(description="Absolute, or from the working folder.")]
Content = Annotated[str, Field(description="All of the file.")]
Encoding = Annotated[toolbox.Encoding, Field(description="What the content is: text, or bytes in base64.")]
