"""Trains and tests one experiment: ``python -m src.train experiment=NAME key=value ...``."""

from src.engine.signals import check, handled


def main(overrides: list[str]) -> dict[str, float]:
    """Runs the experiment and returns its metrics.

    Raises:
        ConfigError: What was asked for cannot be run; nothing has been written then.
        Interrupted: A signal ended the run.
    """
    from src.config import compose_run
    from src.config.slurm import check_tasks
    from src.engine.preemption import global_rank, requeued

    with handled(), requeued():
        composed = compose_run(overrides)  # stage 1 of the checks, without torch
        check_tasks(composed.cfg["trainer"])

        from src.engine.plan import plan_run
        from src.engine.results import announce, finish, finished_before, tested_checkpoint
        from src.engine.run import claim
        from src.engine.trainer import build_trainer

        if (metrics := finished_before(composed)) is not None:
            return metrics
        plan = plan_run(composed)  # stage 2: devices, data, shapes
        if global_rank() == 0:  # the others wait for it, and stop with it
            check()
        with claim(composed) as run:
            announce(plan, run)
            trainer = build_trainer(plan, run)
            run.watch(trainer)
            if plan.cfg["train"]:
                trainer.fit(plan.module, datamodule=plan.datamodule, ckpt_path=run.point, weights_only=True)
            if plan.cfg["test"]:
                best = tested_checkpoint(plan, run)
                trainer.test(plan.module, datamodule=plan.datamodule, ckpt_path=best, verbose=False, weights_only=True)
            return finish(trainer, plan, run)


if __name__ == "__main__":
    with handled():  # before Hydra is imported, which takes half a second
        from src.config.cli import run_entry

        run_entry(main)
