"""Which tasks there are and how their prompts and data are had. lm-eval is loaded when one is."""

from atom.eval.tasks.find import TaskInfo, TaskSpec, find_tasks, list_tasks
from atom.eval.tasks.load import Loaded, load_tasks

__all__ = ["Loaded", "TaskInfo", "TaskSpec", "find_tasks", "list_tasks", "load_tasks"]
