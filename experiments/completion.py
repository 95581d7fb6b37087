"""python -m experiments completion bash|zsh: the shell function that completes our commands; docs/shell.md.

    source <(python -m experiments completion bash)        now, in this shell
    python -m experiments completion zsh >> ~/.zshrc       from now on

It answers for `python -m X` of ours, whatever python's path, and leaves every other use of python as it was. The
answers come from argcomplete and the same parsers that read the arguments.
"""

from __future__ import annotations

from common import cli

MODULES = (
    "experiments", "rankspace", "services.trainer", "services.ref_server", "services.sandbox", "tasks", "deploy",
)  # fmt: skip
ASK = """_ARGCOMPLETE=3 _ARGCOMPLETE_SHELL={shell} _ARGCOMPLETE_SUPPRESS_SPACE=1 \\
        {line} {program} -m {module} 8>&1 9>/dev/null 1>/dev/null 2>/dev/null </dev/null"""
BASH = """_rankspace_complete() {{
    [[ ${{COMP_WORDS[1]}} == -m && ${{COMP_WORDS[2]}} =~ ^({modules})$ && $COMP_CWORD -gt 2 ]] || return 0
    local IFS=$'\\013'
    COMPREPLY=($(IFS=$IFS {ask}))
    [[ ${{COMPREPLY[0]}} == *[=/:] ]] && compopt -o nospace
    return 0
}}
complete -o default -o bashdefault -F _rankspace_complete python python3
"""
ZSH = """_rankspace_complete() {{
    if [[ ${{words[2]}} != -m || ! ${{words[3]}} =~ '^({modules})$' || $CURRENT -le 3 ]]; then
        if (( $+functions[_python] )); then _python; else _default; fi
        return
    fi
    local IFS=$'\\013'
    local -a answers
    answers=($({ask}))
    if [[ ${{answers[1]}} == *[=/:] ]]; then _describe command answers -S ''; else _describe command answers; fi
}}
(( $+functions[compdef] )) || {{ autoload -Uz compinit && compinit; }}
compdef _rankspace_complete python python3
"""


def script(shell: str) -> str:
    """The function and its registration, for 'bash' or 'zsh'."""
    names = "|".join(name.replace(".", "\\.") for name in MODULES)
    if shell == "bash":
        line = "COMP_LINE=$COMP_LINE COMP_POINT=$COMP_POINT COMP_TYPE=$COMP_TYPE _ARGCOMPLETE_COMP_WORDBREAKS=$COMP_WORDBREAKS"
        return BASH.format(modules=names, ask=ASK.format(
            shell=shell, line=line, program='"${COMP_WORDS[0]/#\\~/$HOME}"', module='"${COMP_WORDS[2]}"'))  # fmt: skip
    line = "COMP_LINE=$BUFFER COMP_POINT=$CURSOR"
    return ZSH.format(modules=names, ask=ASK.format(
        shell=shell, line=line, program='"${words[1]/#\\~/$HOME}"', module='"${words[3]}"'))  # fmt: skip


def parser() -> cli.Parser:
    p = cli.Parser(prog="python -m experiments completion", description=__doc__)
    p.add_argument("shell", choices=("bash", "zsh"))
    return p


def main(argv: list[str]) -> int:
    print(script(parser().parse_args(argv).shell), end="")
    return 0
