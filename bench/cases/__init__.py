"""The cases: each module measures one thing and says in its docstring what is fair about the comparison."""
