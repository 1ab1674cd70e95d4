// SPDX-License-Identifier: GPL-2.0
/*
 * Users of the TDX memory reset that misbehave, crashes in awkward places, and
 * a stray write: for the boot scenarios on the simulated machine.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/atomic.h>
#include <linux/delay.h>
#include <linux/interrupt.h>
#include <linux/irq_work.h>
#include <linux/kthread.h>
#include <linux/module.h>
#include <linux/notifier.h>
#include <linux/panic.h>
#include <linux/slab.h>

#include <asm/tdx.h>

static unsigned int racers;
module_param(racers, uint, 0);
MODULE_PARM_DESC(racers, "Tasks that register and unregister a user all the time");

static bool fail;
module_param(fail, bool, 0);
MODULE_PARM_DESC(fail, "Register a user that cannot convert its memory");

static bool stop;
module_param(stop, bool, 0);
MODULE_PARM_DESC(stop, "Register a user that wants no other to be called after it");

static bool lie;
module_param(lie, bool, 0);
MODULE_PARM_DESC(lie, "Register a user that claims a TD that does not exist");

static bool alone;
module_param(alone, bool, 0);
MODULE_PARM_DESC(alone, "Unregister all users there are, KVM too");

static unsigned int hang;
module_param(hang, uint, 0);
MODULE_PARM_DESC(hang, "Register so many users that never come back");

static bool oops;
module_param(oops, bool, 0);
MODULE_PARM_DESC(oops, "Register a user that crashes itself");

static char *crash = "";
module_param(crash, charp, 0);
MODULE_PARM_DESC(crash, "Panic in this context: task, irq, softirq");

static unsigned long stray;
module_param(stray, ulong, 0);
MODULE_PARM_DESC(stray, "Write a word of memory at this physical address around the caches, and read it");

/* A user that says what it is told to. */
struct test_user {
	struct notifier_block nb;
	int answer;
	unsigned int tds;
};

static int test_reset(struct notifier_block *nb, unsigned long action, void *data)
{
	struct test_user *user = container_of(nb, struct test_user, nb);
	struct tdx_memory_reset *reset = data;

	reset->tds += user->tds;
	return user->answer;
}

static struct test_user failing_user = {
	.nb = { .notifier_call = test_reset, .priority = 10 },
	.answer = NOTIFY_BAD,
};

static struct test_user stopping_user = {
	.nb = { .notifier_call = test_reset, .priority = 20 },
	.answer = NOTIFY_STOP,
};

static struct test_user lying_user = {
	.nb = { .notifier_call = test_reset, .priority = 30 },
	.answer = NOTIFY_OK,
	.tds = 1,
};

static int test_oops(struct notifier_block *nb, unsigned long action, void *data)
{
	int *nowhere = (int *)8;

	return READ_ONCE(*nowhere);
}

static struct test_user crashing_user = {
	.nb = { .notifier_call = test_oops, .priority = 35 },
};

static int test_hang(struct notifier_block *nb, unsigned long action, void *data)
{
	for (;;)
		cpu_relax();
}

static struct test_user hanging_users[] = {
	{ .nb = { .notifier_call = test_hang, .priority = 40 } },
	/* Behind KVM. */
	{ .nb = { .notifier_call = test_hang, .priority = -40 } },
};

static const struct {
	bool *wanted;
	struct test_user *user;
} users[] = {
	{ &fail, &failing_user },
	{ &stop, &stopping_user },
	{ &lie, &lying_user },
	{ &oops, &crashing_user },
};

/* The first in the chain: whoever comes next was there before. */
static struct test_user first_user = {
	.nb = { .notifier_call = test_reset, .priority = INT_MAX },
	.answer = NOTIFY_OK,
};

/* Unregister everybody, as if they had never come. Nobody else registers meanwhile. */
static int be_alone(void)
{
	int ret = tdx_register_memory_reset_notifier(&first_user.nb);

	while (!ret && first_user.nb.next)
		ret = tdx_unregister_memory_reset_notifier(first_user.nb.next);
	return ret ?: tdx_unregister_memory_reset_notifier(&first_user.nb);
}

/* Registrations of all racers. */
static atomic_t races;

static int race(void *data)
{
	struct test_user *user;

	while (!kthread_should_stop()) {
		/* A new one each time: whoever keeps it for too long reads what is freed. */
		user = kzalloc_obj(*user);
		if (!user)
			return -ENOMEM;
		user->nb.notifier_call = test_reset;
		user->nb.priority = atomic_inc_return(&races) % 7;
		user->answer = NOTIFY_OK;
		if (WARN_ON(tdx_register_memory_reset_notifier(&user->nb)))
			return -EIO;
		cond_resched();
		WARN_ON(tdx_unregister_memory_reset_notifier(&user->nb));
		memset(user, 0xff, sizeof(*user));
		kfree(user);
	}
	return 0;
}

static void crash_in_irq(struct irq_work *work)
{
	panic("tdx-reset-test: crash in a hard interrupt (%d)", !!in_hardirq());
}

static struct irq_work crash_irq_work = IRQ_WORK_INIT_HARD(crash_in_irq);

static void crash_in_softirq(struct timer_list *timer)
{
	panic("tdx-reset-test: crash in a soft interrupt (%d)", !!in_serving_softirq());
}

static DEFINE_TIMER(crash_timer, crash_in_softirq);

static void write_stray(u64 *word)
{
	asm volatile("movnti %1, %0" : "=m" (*word) : "r" (1UL));
	/* It leaves the write-combining buffer before it is read. */
	wmb();
	pr_info("stray write: %llu\n", READ_ONCE(*word));
}

static int __init test_init(void)
{
	unsigned int i;
	int ret;

	if (alone) {
		ret = be_alone();
		if (ret)
			return ret;
	}

	for (i = 0; i < ARRAY_SIZE(users); i++) {
		if (!*users[i].wanted)
			continue;
		ret = tdx_register_memory_reset_notifier(&users[i].user->nb);
		if (ret)
			return ret;
	}

	for (i = 0; i < min(hang, ARRAY_SIZE(hanging_users)); i++) {
		ret = tdx_register_memory_reset_notifier(&hanging_users[i].nb);
		if (ret)
			return ret;
	}

	for (i = 0; i < racers; i++) {
		struct task_struct *task = kthread_run(race, NULL, "tdx_race/%u", i);

		if (IS_ERR(task))
			return PTR_ERR(task);
	}
	if (racers)
		msleep(200);

	if (stray)
		write_stray(__va(stray));

	if (!strcmp(crash, "task"))
		panic("tdx-reset-test: crash in a task");
	if (!strcmp(crash, "irq"))
		irq_work_queue(&crash_irq_work);
	if (!strcmp(crash, "softirq"))
		mod_timer(&crash_timer, jiffies + 1);
	pr_info("%d registrations so far\n", atomic_read(&races));
	return 0;
}
module_init(test_init);

/* It is never unloaded: there is no exit function. */

MODULE_DESCRIPTION("Awkward users of the TDX memory reset");
MODULE_LICENSE("GPL");
